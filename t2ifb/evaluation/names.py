"""What runs and their settings are called: by what tells them apart, and no more."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

TIME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?")
"""What a run's folder is called where nothing else is asked for."""

VAGUE = ("count", "path", "source")
"""Ends of keys that say nothing alone."""


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
    """For each dotted key of a configuration the shortest end that tells it apart and says something.

    `x._target_` is called `x`.
    """
    plain = [key.removesuffix("._target_").split(".") for key in keys]
    ends = zip(keys, plain, shortest_ends(plain), strict=True)
    return {key: ".".join(words[-2:] if len(end) == 1 and end[0] in VAGUE else end) for key, words, end in ends}
