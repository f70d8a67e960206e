"""Sweeps that survive: each job in a folder of its own values, so that what is finished is not done again."""

import gc
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from t2ifb.config.errors import ConfigError
from t2ifb.config.resume import BEGUN_WITH, SHOWN, differences, record_settings
from t2ifb.utils.files import FolderInUse, atomic_write, write_json

FAILED = "failed.json"
"""What ended a job of a sweep; gone when the job is started again, or ends well in another process."""
REFUSED = "refused.json"
"""What kept a finished job from being one of this sweep; gone when its settings are the first ones again."""
SEEDS = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")
"""Of the environment, where Lightning leaves a run's seed."""


def in_sweep() -> bool:
    """Whether this is a job of a sweep."""
    return bool(HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN)


@contextmanager
def one_job(folder: Path) -> Iterator[None]:
    """A job of a sweep: what ended it is written down, and nothing of it is left in the process for the next one.

    Args:
        folder: Its run folder.
    """
    before = {name: os.environ[name] for name in SEEDS if name in os.environ}
    try:
        yield
        (folder / FAILED).unlink(missing_ok=True)
    except Exception as error:
        record_failure(folder, error)
        if wandb := sys.modules.get("wandb"):
            with suppress(Exception):
                wandb.finish(exit_code=1)  # or the next job would end it as one that went well
        cause: BaseException | None = error
        while cause is not None:  # Hydra keeps the error, and its frames would keep the model
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        raise  # the other jobs go on
    finally:
        for name in SEEDS:
            os.environ.pop(name, None)
        os.environ.update(before)
        gc.collect()
        if torch := sys.modules.get("torch"):
            torch.cuda.empty_cache()


def resolve_job(folder: Path, settings: Mapping[str, Any]) -> None:
    """Hold a job of a sweep to the settings that it was begun with: its arguments alone do not say all.

    Args:
        folder: Its run folder. Hydra has written the settings of this start there; those of the first one take their
            place again if they are others.
        settings: Its configuration as plain containers, as it is written.

    Raises:
        ConfigError: They are others; what changes no weight is not compared.
    """
    for name in (FAILED, REFUSED):
        (folder / name).unlink(missing_ok=True)
    begun_with = folder / BEGUN_WITH
    if not begun_with.exists():
        record_settings(folder, settings, resume=True)
    elif changed := differences(begun_with, settings):
        with atomic_write(begun_with.with_name("config.yaml")) as file:
            file.write(begun_with.read_bytes())
        what = f"{folder} was begun with other settings: {'; '.join(changed[:SHOWN])}"
        write_json(folder / REFUSED, {"changed": changed})
        raise ConfigError([f"{what}. Delete it, or give another hydra.sweep.dir"])


def known_figures(folder: Path) -> dict[str, Any] | None:
    """Contents of a job's `summary.json` if an earlier start of the sweep finished the job, which is not run again."""
    summary = folder / "summary.json"
    if not summary.exists():
        return None
    print(f"finished before: {folder}")
    return dict(json.loads(summary.read_text(encoding="utf-8")))


def begun(folder: Path) -> Path | None:
    """The folder of a job that an earlier start of the sweep began and did not finish."""
    return folder if (folder / "checkpoints" / "last.ckpt").exists() else None


def record_failure(folder: Path, error: BaseException) -> None:
    """Write down what ended a job, but for one that another process is at, or that was finished before."""
    text = str(error).strip() or type(error).__name__
    print(f"failed: {folder}: {text}", file=sys.stderr, flush=True)
    if isinstance(error, FolderInUse) or (folder / "summary.json").exists():
        return
    write_json(folder / FAILED, {"error": text, "kind": type(error).__name__})


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
