"""Which folders are runs, and what they are called."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

OWN = ("checkpoints", "samples", "export", "wandb", "tensorboard")
"""Folders inside a run that hold no runs."""
TIME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?")
"""What a run's folder is called where nothing else is asked for."""
EXPECTED = "a run folder (with .hydra/, metrics.csv or summary.json), or a folder that contains some at any depth"


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """All run folders in and below some folders, absolute, each once, in the order given and then by name.

    Raises:
        FileNotFoundError: A path is not there; its `filename` says which.
        ValueError: A path is a file, or there is no run in any of them.
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


def _below(folder: Path) -> Iterator[Path]:
    """Runs in a folder and below it; a folder with nothing but a summary is one only if it contains none."""
    is_run = (folder / ".hydra").is_dir() or (folder / "metrics.csv").is_file()
    if is_run:
        yield folder
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
    except OSError:
        names = []  # a folder that may not be read holds no run for us
    inside = [run for name in names if name not in OWN and name[0] != "." for run in _below(folder / name)]
    yield from inside
    if not is_run and not inside and (folder / "summary.json").is_file():
        yield folder


def short_names(runs: Sequence[Path]) -> list[str]:
    """For each folder the shortest end of its path that tells it apart; a time counts only where nothing else does."""
    timeless = [path.parent if TIME.fullmatch(path.name) else path for path in runs]
    alone = [timeless.count(path) == 1 and path not in runs for path in timeless]
    words = [one.parts if use else path.parts for one, use, path in zip(timeless, alone, runs, strict=True)]
    ends = [
        path[-2:] if len(end) == 1 and TIME.fullmatch(end[0]) else end
        for path, end in zip(words, shortest_ends(words), strict=True)
    ]
    return ["/".join(end).replace("//", "/") for end in ends]


def shortest_ends(names: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """For each of some different sequences of words the shortest end that no other one has."""
    counted: dict[tuple[str, ...], int] = {}
    for words in names:
        for start in range(len(words)):
            end = tuple(words[start:])
            counted[end] = counted.get(end, 0) + 1
    return [
        next((end for n in range(1, len(words)) if counted[end := tuple(words[-n:])] == 1), tuple(words))
        for words in names
    ]


def labels(keys: Sequence[str]) -> Mapping[str, str]:
    """For each dotted key of a configuration the shortest end that tells it apart; `x._target_` is called `x`."""
    plain = [key.removesuffix("._target_").split(".") for key in keys]
    return {key: ".".join(end) for key, end in zip(keys, shortest_ends(plain), strict=True)}


def common_parent(runs: Sequence[Path]) -> Path:
    """Where the page goes: the run's own folder, or the nearest one that contains them all."""
    return Path(os.path.commonpath(runs))
