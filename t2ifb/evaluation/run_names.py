"""Short unique names of runs and settings."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

TIME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?")
"""Pattern of default run folder names: a time."""

VAGUE = ("count", "path", "source")
"""Final key parts that are not meaningful alone."""


def short_names(runs: Sequence[Path]) -> list[str]:
    """Shortest unique path suffix of each folder. Times are used only if needed to distinguish folders."""
    timeless = [path.parent if TIME.fullmatch(path.name) else path for path in runs]
    alone = [timeless.count(path) == 1 and path not in runs for path in timeless]
    words = [one.parts if use else path.parts for one, use, path in zip(timeless, alone, runs, strict=True)]
    ends = [
        path[-2:] if len(end) == 1 and TIME.fullmatch(end[0]) else end
        for path, end in zip(words, shortest_ends(words), strict=True)
    ]
    return ["/".join(end).replace("//", "/") for end in ends]


def shortest_ends(names: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Shortest unique suffix of each sequence of words. The sequences must differ."""
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
    """Shortest unique and meaningful suffix of each dotted configuration key.

    `x._target_` becomes `x`.
    """
    plain = [key.removesuffix("._target_").split(".") for key in keys]
    ends = zip(keys, plain, shortest_ends(plain), strict=True)
    return {key: ".".join(words[-2:] if len(end) == 1 and end[0] in VAGUE else end) for key, words, end in ends}
