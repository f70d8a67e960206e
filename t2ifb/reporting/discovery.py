"""Discovery of run folders."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

OWN = ("checkpoints", "samples", "export", "wandb", "tensorboard", "csv")
"""Subfolders of a run that contain no runs."""
EXPECTED = (
    "a run folder (training or evaluation, with .hydra/, metrics.csv or summary.json), or a parent of run folders"
)


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """All run folders in and below the given folders, absolute and unique, in the given order, then by name.

    Raises:
        FileNotFoundError: A path does not exist; see its `filename`.
        ValueError: A path is a file, or no run was found.
    """
    paths = list(paths)
    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(2, "No such file or directory", str(path))
        if not path.is_dir():
            raise ValueError(f"{path} is a file; expected {EXPECTED}")
        found |= dict.fromkeys(_below(Path(os.path.abspath(path))))
    if not found:
        raise ValueError(f"no run found in {', '.join(map(str, paths))}; expected {EXPECTED}")
    return list(found)


def _below(folder: Path, inside_run: bool = False) -> Iterator[Path]:
    """Runs in and below a folder. A folder with only a summary is a run only if it contains no other runs.

    Inside a run, `metrics.csv` may be a logger's, so only a folder with a configuration is another run.
    """
    is_run = _is_configured(folder) or (not inside_run and os.path.isfile(folder / "metrics.csv"))
    if is_run:
        yield folder
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
    except OSError:
        names = []  # skip unreadable folders
    inside = [
        run
        for name in names
        if name not in OWN and name[0] != "."
        for run in _below(folder / name, inside_run or is_run)
    ]
    yield from inside
    if not inside_run and not is_run and not inside and os.path.isfile(folder / "summary.json"):
        yield folder


def _is_configured(folder: Path) -> bool:
    """Whether the folder has a configuration of training or evaluation, not only of `t2ifb.generate`.

    Runs that were started from Python, such as the rounds of an iteration, have `settings.json`. In an unreadable
    folder `Path.is_file` raises, and `os.path.isfile` is False.
    """
    if os.path.isfile(folder / "settings.json"):
        return True
    try:
        drawn = b"\nlora:" in (folder / ".hydra" / "config.yaml").read_bytes()
    except OSError:
        drawn = False
    return os.path.isdir(folder / ".hydra") and not drawn


def common_parent(runs: Sequence[Path]) -> Path:
    """Folder for the page: the run's own folder, or the nearest common parent."""
    return Path(os.path.commonpath(runs))
