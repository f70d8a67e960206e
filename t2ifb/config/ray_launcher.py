"""`hydra/launcher=ray`: the jobs of a sweep on a Ray cluster, or on the cores of this machine.

The launcher that Hydra's authors publish for Ray needs a release of Ray that today's Pythons do not have.
"""

import logging
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, open_dict

from t2ifb.config.sweeps import record_failure


class RayLauncher(Launcher):
    """Runs each job in a process of its own that ends with it, so that nothing leaks from one job into the next."""

    def __init__(self, address: str | None = None, num_cpus: float = 1.0, num_gpus: float = 0.0) -> None:
        """Say where and with what.

        Args:
            address: Address of a running cluster, `auto` for the one that this machine belongs to; by default a new one
                on this machine.
            num_cpus: Cores a job takes.
            num_gpus: GPUs a job takes; may be a part of one.
        """
        self.address, self.resources = address, {"num_cpus": num_cpus, "num_gpus": num_gpus}

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Keep what a job needs."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs, as many at a time as there are cores and GPUs for.

        Args:
            job_overrides: The arguments of each.
            initial_job_idx: Number of the first.

        Returns:
            What each gave; one that failed raises its error when it is asked for its value.
        """
        try:
            import ray
        except ImportError as error:
            raise ValueError("hydra/launcher=ray needs pip install -c constraints.txt -e '.[sweeps]'") from error
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        if not ray.is_initialized():
            ray.init(address=self.address, include_dashboard=False, logging_level=logging.WARNING)
        job = ray.remote(max_calls=1, max_retries=0, **self.resources)(_run)  # type: ignore[call-overload]
        shared = (self.hydra_context, self.config, self.task_function, Singleton.get_state(), os.getcwd())
        try:
            jobs = [(initial_job_idx + place, list(some)) for place, some in enumerate(job_overrides)]
            waiting = [job.remote(*one, *shared) for one in jobs]
            return [self._result(ray, result, *one) for result, one in zip(waiting, jobs, strict=True)]
        finally:
            if self.address is None:
                ray.shutdown()

    def _result(self, ray: Any, waiting: Any, number: int, overrides: list[str]) -> JobReturn:
        """What a job gave; one whose process was killed has failed, and the others go on."""
        try:
            result: JobReturn = ray.get(waiting)
        except ray.exceptions.RayError as error:
            result, lost = JobReturn(), ValueError(f"a job was lost: {error}")
            result.status, result.return_value = JobStatus.FAILED, lost
            sweep = _composed(self.hydra_context, self.config, number, overrides).hydra.sweep
            record_failure(Path(sweep.dir).absolute() / sweep.subdir, lost)
        return result


def _run(
    number: int, overrides: list[str], hydra_context: Any, config: Any, task_function: Any, state: Any, folder: str
) -> JobReturn:
    """One job, in a worker: what Hydra's own launchers do for each, in the folder where the sweep was started."""
    os.chdir(folder)
    setup_globals()
    Singleton.set_state(state)
    composed = _composed(hydra_context, config, number, overrides)
    HydraConfig.instance().set_config(composed)
    return run_job(
        hydra_context=hydra_context,
        config=composed,
        task_function=task_function,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def _composed(hydra_context: Any, config: Any, number: int, overrides: list[str]) -> DictConfig:
    """The configuration of one job."""
    composed: DictConfig = hydra_context.config_loader.load_sweep_config(config, overrides)
    with open_dict(composed):
        composed.hydra.job.id = f"{composed.hydra.job.name}_{number}"
        composed.hydra.job.num = number
    return composed


def offer() -> None:
    """Make the launcher and its option known to Hydra, which takes plugins from the package `hydra_plugins` alone."""
    if find_spec("hydra_plugins") is None:  # no other plugin is installed
        sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
    module = ModuleType("hydra_plugins.t2ifb")
    module.RayLauncher = RayLauncher  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    RayLauncher.__module__ = module.__name__
    Plugins.instance().register(RayLauncher)
    defaults = {"address": None, "num_cpus": 1, "num_gpus": 0}
    node = {"_target_": f"{module.__name__}.RayLauncher", **defaults}
    ConfigStore.instance().store(group="hydra/launcher", name="ray", node=node)
