"""Folder of one run: its layout, and atomic writes."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from t2ifb.utils.files import FolderInUse, make_folder, write_json

SUMMARY = "summary.json"
"""Results of a run; written last, so that it marks a finished run."""
SETTINGS = "settings.json"
"""Settings of a run that was started from Python; those of the command line are in `.hydra/`."""
PACKAGES = (
    "t2ifb",
    "torch",
    "lightning",
    "transformers",
    "diffusers",
    "open_clip_torch",
    "peft",
    "hydra-core",
    "numpy",
)


class RunFolder:
    """`outputs/<domain>/<experiment>/<time>/`.

    Attributes:
        path: Path of the folder.
        checkpoints: Folder of `last.ckpt` and `best.ckpt`.
        samples: Folder of validation samples.
        export: Folder of the exported model.
        metrics: Path of `metrics.csv`.
    """

    def __init__(self, path: str | Path) -> None:
        """Create the folder. Subfolders are created on first write."""
        self.path = make_folder(Path(path))
        self.checkpoints, self.samples, self.export = (
            self.path / name for name in ("checkpoints", "samples", "export")
        )
        self.metrics = self.path / "metrics.csv"

    @property
    def last_checkpoint(self) -> Path:
        """Checkpoint for resuming."""
        return self.checkpoints / "last.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        """Checkpoint with the best validation metric."""
        return self.checkpoints / "best.ckpt"

    def step(self, step: int, ending: str) -> Path:
        """Path of a validation's file in `samples/`, such as `step_000020.csv`."""
        return self.samples / f"step_{step:06d}{ending}"

    def check_new(self, resume: bool) -> None:
        """Check that a run may start here: no results are overwritten.

        Args:
            resume: Whether the folder's unfinished run is to be continued.

        Raises:
            ValueError: The folder has a finished run, or an unfinished one and `resume` is False.
        """
        if (self.path / SUMMARY).exists():
            raise ValueError(
                f"output_dir={str(self.path)!r}: the run in it is finished; its results are in {SUMMARY} and export/. "
                "Give another folder"
            )
        if self.last_checkpoint.exists() and not resume:
            raise ValueError(
                f"output_dir={str(self.path)!r}: there is an unfinished run in it; continue it with resume=True, or "
                "give another folder"
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder. The operating system releases the lock when this process ends, even by a kill.

        Raises:
            FolderInUse: Another process uses the folder.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise FolderInUse(
                f"Another process uses {self.path}. Wait for it, or start a new run without resume."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file to the folder atomically."""
        write_json(self.path / name, content)

    def write_settings(self, settings: dict[str, Any]) -> None:
        """Write the settings, unless the command line has recorded them."""
        if not (self.path / ".hydra" / "config.yaml").exists():
            self.write_json(SETTINGS, settings)

    def write_summary(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Write `summary.json`: results, versions and the git commit."""
        summary = figures | {"versions": versions(PACKAGES), "git_commit": git_commit(), "machine": platform.platform()}
        self.write_json(SUMMARY, summary)
        return summary


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python and installed packages. Missing packages are skipped."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Git commit of the code, with `+` for uncommitted changes; None outside a checkout of its own repository."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():  # a file in a worktree; otherwise git finds a repository further up
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
