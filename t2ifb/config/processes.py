"""Whether a run may be several processes, and whether they share its folder."""

import os
from collections.abc import Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig

from t2ifb.config.errors import ConfigError
from t2ifb.config.sweeps import in_sweep
from t2ifb.utils.trainers import has_several


def check_processes(trainer: Mapping[str, Any]) -> None:
    """Refuse a trainer of several processes where they would not work on one run.

    Args:
        trainer: Its arguments.

    Raises:
        ConfigError: It is that of a job of a sweep, or the processes are started from outside without a common folder.
    """
    if not has_several(trainer):
        return
    if in_sweep():
        raise ConfigError(["trainer: a job of a sweep is one process, as several would each begin the sweep again"])
    given = any(str(override).startswith("hydra.run.dir=") for override in HydraConfig.get().overrides.hydra)
    if are_started_outside(os.environ) and not given:
        raise ConfigError(["trainer: processes that torchrun or srun starts need one folder: hydra.run.dir=<folder>"])


def are_started_outside(environment: Mapping[str, str]) -> bool:
    """Whether torchrun or srun has started this process and others, which would all name their own folders."""
    ranked = "RANK" in environment or "SLURM_PROCID" in environment
    return ranked and int(environment.get("WORLD_SIZE", environment.get("SLURM_NTASKS", "1"))) > 1
