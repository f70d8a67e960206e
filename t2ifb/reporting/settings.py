"""Settings of runs: flattened to texts and numbers, and compared."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

Value = str | int | float | bool | None
"""Value of a setting; None is `null` or a missing setting."""
POINTER = re.compile(r"\$\{([\w.]+)\}")
PROVENANCE = frozenset(("git_commit", "reward_sha256"))
"""Settings outside the configuration: the commit, and hashes of the training data."""
QUIET = ("resume", "data_folder", "build", "logger")
"""Settings that do not affect results: resume path, file locations, loggers."""
KNOWN = ("algorithm.alpha", "algorithm.beta", "optimizer.lr", "seed", "reward._target_")
"""Settings most often compared, listed first."""


def flat(config: Mapping[str, Any], prefix: str = "", root: Mapping[str, Any] | None = None) -> dict[str, Value]:
    """Flatten a composed configuration to dotted keys. Lists of plain values become text.

    Args:
        config: Nested configuration.
        prefix: Prefix of the keys.
        root: Root configuration, for resolving `${a.b}`.
    """
    found: dict[str, Value] = {}
    root = config if root is None else root
    for name, value in config.items():
        key = f"{prefix}{name}"
        value = _pointed(value, root)
        if not prefix and key in QUIET:
            continue
        if isinstance(value, Mapping):
            found |= flat(value, f"{key}.", root)
        elif isinstance(value, list):
            nested = any(isinstance(item, (Mapping, list)) for item in value)
            listed = flat({str(n): item for n, item in enumerate(value)}, f"{key}.", root) if nested else {}
            found |= listed or {key: "[" + ", ".join(map(_plain, value)) + "]"}
        elif value is None or isinstance(value, (str, int, float, bool)):
            found[key] = _class_name(value) if key.endswith("_target_") and isinstance(value, str) else value
        else:
            found[key] = str(value)  # dates, which YAML parses but configurations do not have
        if isinstance(value, float) and not math.isfinite(value):
            found[key] = str(value)
    return found


def differing(runs: Sequence[Mapping[str, Value]]) -> list[str]:
    """Keys whose values differ between runs, in display order.

    Keys in `KNOWN` come first, then those in all runs, then those in some runs. Unknown values do not differ: those of
    a run without a configuration, and missing ones of `PROVENANCE`.

    A reference to another value (`${optimizer}`) is skipped, because the target is compared itself.
    """
    keys = dict.fromkeys([*KNOWN, *(key for run in runs for key in run)])
    known = [run for run in runs if run.keys() - PROVENANCE]

    def values(key: str) -> set[tuple[str, Value]]:
        return {_same(run.get(key)) for run in ([run for run in runs if key in run] if key in PROVENANCE else known)}

    found = [key for key in keys if len(values(key)) > 1 and not _points(key, runs)]
    return sorted(found, key=lambda key: (key not in KNOWN, any(run.get(key) is None for run in known)))


def shown(value: Value) -> str:
    """Format a value for display. A missing value is a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def numeric(value: Value) -> bool:
    """Whether the value is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _pointed(value: Any, root: Mapping[str, Any]) -> Any:
    """Plain value that `${a.b}` refers to. References to sections or unknown keys stay unchanged."""
    match = POINTER.fullmatch(value) if isinstance(value, str) else None
    target: Any = root if match else None
    for part in match[1].split(".") if match else ():
        target = target.get(part) if isinstance(target, Mapping) else None
    return value if target is None or isinstance(target, (Mapping, list)) else target


def _plain(value: Any) -> str:
    return shown(value) if value is None or isinstance(value, (int, float, bool)) else str(value)


def _same(value: Value) -> tuple[str, Value]:
    """Comparison key: 1 and 1.0 are equal, 1 and True are not."""
    return ("number", float(value)) if isinstance(value, float) or type(value) is int else (type(value).__name__, value)


def _points(key: str, runs: Sequence[Mapping[str, Value]]) -> bool:
    values = [run[key] for run in runs if run.get(key) is not None]
    return all(isinstance(value, str) and POINTER.fullmatch(value) for value in values)


def _class_name(target: str) -> str:
    """`t2ifb.finetuning.refl.ReFL` becomes `ReFL`, `….RewardModel.from_pretrained` becomes `RewardModel`."""
    *_, owner, name = ["", *target.split(".")]
    return owner if owner[:1].isupper() else name
