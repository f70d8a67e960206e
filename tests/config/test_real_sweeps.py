"""Sweeps of real fine-tuning runs, as a user starts them: killed, started again, recorded."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import CHECKOUT, run_in
from tests.finetuning.tuning_worlds import FEW, export_reward
from tests.training.wandb_files import read

pytestmark = pytest.mark.slow

SWEEP = (*FEW, "algorithm.epochs=5", "algorithm.validate_every=5", "-m", "seed=0,1")
"""Ten updates a run, a checkpoint after five."""


class World:
    """A folder with what all sweeps here share, and one for each in which it is started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.reward = folder, export_reward(folder / "reward")

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        (self.folder / name).mkdir(exist_ok=True)
        with (self.folder / name / "log.txt").open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "t2ifb.train", *arguments, f"reward.source={self.reward}"],
                cwd=self.folder / name,
                env={**os.environ, "PYTHONPATH": str(CHECKOUT), "T2IFB_DATA": str(self.folder / "data")},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, name: str, *arguments: str) -> str:
        status = self.start(name, *arguments).wait()
        output = (self.folder / name / "log.txt").read_text()
        assert status == 0, output
        return output

    def sweep(self, name: str) -> Path:
        return self.folder / name / "outputs" / "shapes" / "refl" / "sweep"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("sweeps"))


@pytest.fixture(scope="module")
def whole(world: World) -> dict[int, Path]:
    """The jobs of a sweep that nothing disturbed, by seed."""
    (world.folder / "whole").mkdir()
    data = str(world.folder / "data")
    done = run_in(
        world.folder / "whole", "t2ifb.train", *SWEEP, f"reward.source={world.reward}", T2IFB_DATA=data
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {json.loads(file.read_text())["seed"]: file.parent for file in world.sweep("whole").glob("*/summary.json")}


def written(folder: Path) -> dict[Path, int]:
    """When each file of a run was written, but for logs and what Hydra writes whenever it starts a job."""
    files = [file for file in folder.rglob("*") if file.parent.name != ".hydra" and file.suffix != ".log"]
    return {file: file.stat().st_mtime_ns for file in files if file.is_file()}


def same_weights(one: Path, other: Path) -> bool:
    """Whether two runs ended alike, bit for bit; the files may differ, as safetensors orders its metadata by chance."""
    first, second = (load_file(job / "export" / "pytorch_lora_weights.safetensors") for job in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_sweep_that_was_killed_and_started_again_ends_as_one_that_was_not(
    world: World, whole: dict[int, Path]
) -> None:
    first, second = (world.sweep("killed") / whole[seed].name for seed in (0, 1))
    process = world.start("killed", *SWEEP)
    while process.poll() is None and not (second / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (first / "summary.json").exists() and not (second / "summary.json").exists()
    finished, begun = written(first), (second / "samples" / "step_000005.png").stat().st_mtime_ns

    output = world.run("killed", *SWEEP)

    assert output.count("finished before") == 1 and f"finished before: {first}" in output
    assert written(first) == finished
    assert (second / "samples" / "step_000005.png").stat().st_mtime_ns == begun  # what was done is not done again
    for job, other in ((first, whole[0]), (second, whole[1])):
        assert same_weights(job, other)
    tables = [(world.sweep(name) / "sweep.csv").read_bytes() for name in ("killed", "whole")]
    assert tables[0] == tables[1] and tables[0].count(b"\n") == 3


@pytest.mark.parametrize("launcher", ["basic", "joblib", "ray", "submitit_local"])
def test_a_job_is_the_same_after_another_and_alone(world: World, whole: dict[int, Path], launcher: str) -> None:
    if launcher != "basic":
        pytest.importorskip({"submitit_local": "submitit"}.get(launcher, launcher))
    one_worker = ["seed=0,1", "hydra.launcher.n_jobs=1"] if launcher == "joblib" else ["seed=1"]
    world.run(launcher, *SWEEP[:-1], *one_worker, f"hydra/launcher={launcher}", "logger=none")
    assert not same_weights(whole[0], whole[1])
    for job in world.sweep(launcher).glob("*/export"):
        assert same_weights(job.parent, world.sweep("whole") / job.parent.name)
    assert (world.sweep(launcher) / whole[1].name / "export").is_dir()


def test_weights_and_biases_has_what_the_jobs_of_a_sweep_are_compared_by(whole: dict[int, Path]) -> None:
    for seed, job in whole.items():
        run = read(job)
        assert run.run.run_group == "shapes/refl/sweep"
        assert run.run.display_name == f"refl/sweep-seed{seed}-{job.name}"
        assert set(run.run.tags) == {"shapes", "refl", "sweep"}
        given = yaml.safe_load((job / ".hydra" / "config.yaml").read_text())
        assert run.config["seed"] == seed and run.config["optimizer"]["lr"] == given["optimizer"]["lr"]
        assert {key: run.config["algorithm"][key] for key in ("alpha", "beta")} == {"alpha": 1.0, "beta": 0.01}
        assert run.metrics["*"].step_metric == "trainer/global_step" and run.metrics["val/judges"].summary.max
        names = {name for logged in run.history for name in logged}
        assert {f"val/{name}" for name in ("judges", "reward", "gold", "kl", "clip_score")} <= names
        assert {f"train/{name}" for name in ("reward", "kl")} <= names
        steps = [logged["trainer/global_step"] for logged in run.history if "val/judges" in logged]
        assert steps == [0, 4, 9]  # the base model; then Lightning counts from 0
        validation: dict[str, Any] = json.loads((job / "summary.json").read_text())["validation"]
        for name in ("judges", "kl"):
            assert run.summary[f"kept/{name}"] == pytest.approx(validation[name])


def test_optuna_started_again_proposes_the_same_and_finds_it_finished(world: World) -> None:
    pytest.importorskip("optuna")
    sweep = (*FEW, "+sweep=optuna_refl", "hydra.sweeper.n_trials=2", "logger=none")
    assert "finished before" not in world.run("optuna", *sweep)
    folder = world.sweep("optuna").parent / "optuna_refl"
    jobs = {file.parent: written(file.parent) for file in folder.glob("*/summary.json")}
    tables = (folder / "sweep.csv").read_bytes(), (folder / "optimization_results.yaml").read_bytes()
    assert len(jobs) == 2 and tables[0].startswith(b"run,beta,lr,judges,kl,")
    assert world.run("optuna", *sweep).count("finished before") == 2
    assert {file.parent: written(file.parent) for file in folder.glob("*/summary.json")} == jobs
    assert ((folder / "sweep.csv").read_bytes(), (folder / "optimization_results.yaml").read_bytes()) == tables
