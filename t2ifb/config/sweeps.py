"""Sweeps that survive: each job in a folder of its own values, so that what is finished is not done again."""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from t2ifb.data.files import atomic_write

FAILED = "failed.json"
"""What ended a job of a sweep; gone when the job is started again."""


def short_hash(text: str) -> str:
    """Ten letters and figures that stand for a job's arguments."""
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def in_sweep() -> bool:
    """Whether this is a job of a sweep."""
    return bool(HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN)


def known_figures(folder: Path) -> dict[str, Any] | None:
    """What a job's `summary.json` says if an earlier start of the sweep finished it; it is told and not done again."""
    (folder / FAILED).unlink(missing_ok=True)
    summary = folder / "summary.json"
    if not in_sweep() or not summary.exists():
        return None
    print(f"finished before: {folder}")
    return dict(json.loads(summary.read_text(encoding="utf-8")))


def begun(folder: Path) -> Path | None:
    """The folder of a job that an earlier start of the sweep began and did not finish."""
    return folder if in_sweep() and (folder / "checkpoints" / "last.ckpt").exists() else None


def record_failure(error: BaseException) -> None:
    """Write down what ended this job; the others go on."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    text = str(error).strip() or type(error).__name__
    print(f"failed: {folder}: {text}", file=sys.stderr, flush=True)
    with atomic_write(folder / FAILED) as file:
        file.write(json.dumps({"error": text, "kind": type(error).__name__}, indent=2).encode())


def objectives(figures: dict[str, Any], names: Sequence[str]) -> float | tuple[float, ...] | None:
    """The figures that a sweeper goes by, such as `validation/judges`; nothing where none are named.

    Raises:
        ValueError: There is no such figure.
    """
    found = []
    for name in names:
        value: Any = figures
        for part in name.split("/"):
            value = value.get(part) if isinstance(value, dict) else None
        if not isinstance(value, (int, float)):
            raise ValueError(f"objective={list(names)}: the run's summary.json has no figure {name}")
        found.append(float(value))
    return None if not found else found[0] if len(found) == 1 else tuple(found)
