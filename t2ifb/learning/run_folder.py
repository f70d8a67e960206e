"""The folder of one run: what lies where, and what is written whole or not at all."""

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from t2ifb.data.files import FolderInUse, atomic_write, make_folder

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
        path: The folder itself.
        checkpoints: `last.ckpt` and `best.ckpt`.
        samples: Pictures made along the way.
        export: What others load.
        metrics: `metrics.csv`.
    """

    def __init__(self, path: str | Path) -> None:
        """Make the folder; those in it are made when something is written into them."""
        self.path = make_folder(Path(path))
        self.checkpoints, self.samples, self.export = (
            self.path / name for name in ("checkpoints", "samples", "export")
        )
        self.metrics = self.path / "metrics.csv"

    @property
    def last_checkpoint(self) -> Path:
        """Where a resumed run goes on from."""
        return self.checkpoints / "last.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        """The state with the best validation performance."""
        return self.checkpoints / "best.ckpt"

    def step(self, step: int, ending: str) -> Path:
        """A file in `samples/` of the validation at a step, such as `step_000020.csv`."""
        return self.samples / f"step_{step:06d}{ending}"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes out of the folder; the operating system lets go when this one ends, however it ends.

        Raises:
            FolderInUse: Another process is in it.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise FolderInUse(f"Another process runs in {self.path}. Wait for it, or leave resume out.") from None
        try:
            yield
        finally:
            lock.release()

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file into the folder, whole or not at all."""
        with atomic_write(self.path / name) as file:
            file.write(json.dumps(content, indent=2, default=str).encode())

    def write_summary(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Write `summary.json`: the figures, versions and the git commit."""
        summary = figures | {"versions": versions(PACKAGES), "git_commit": git_commit(), "machine": platform.platform()}
        self.write_json("summary.json", summary)
        return summary


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions, Python's included; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit that the code is at, with `+` when files differ from it; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
