"""Jobs of a sweep on Ray; the launchers that others publish are in `test_sweeps.py`."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher

from t2ifb.config.ray_launcher import RayLauncher, offer
from tests.config.test_command import TINY
from tests.conftest import Command


@pytest.mark.slow
def test_a_job_whose_process_was_killed_is_recorded(run_module: Command, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (tmp_path / "fail.txt").write_text("kill:")
    (tmp_path / "fail_seed.txt").write_text("1")
    done = run_module(*TINY, "-m", "seed=1,2", "hydra/launcher=ray")
    assert done.returncode == 1
    (failure,) = (tmp_path / "outputs" / "tiny" / "tiny" / "sweep").glob("*/failed.json")
    assert "a job was lost" in failure.read_text()
    assert "failed: a job was lost" in done.stdout and "1 of 2 runs are not finished" in done.stdout


def test_hydra_finds_it_once_it_is_offered_also_twice() -> None:
    for _ in range(2):
        offer()
    (found,) = (each for each in Plugins.instance().discover(Launcher) if each.__name__ == "RayLauncher")
    assert found is RayLauncher
    assert sys.modules[RayLauncher.__module__].RayLauncher is RayLauncher  # by this name Hydra builds it


def test_a_job_may_take_a_part_of_a_gpu() -> None:
    launcher = RayLauncher("auto", num_cpus=2, num_gpus=0.5)
    assert (launcher.address, launcher.resources) == ("auto", {"num_cpus": 2, "num_gpus": 0.5})


def test_without_ray_the_command_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    launcher = RayLauncher()
    launcher.setup(hydra_context=None, task_function=None, config=SimpleNamespace())
    with pytest.raises(ValueError, match=r"hydra/launcher=ray needs pip install .*\[sweeps\]"):
        launcher.launch([["seed=1"]], 0)
