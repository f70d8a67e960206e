"""A real SIGKILL, at moments that nobody chose."""

import random
import time
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from t2ifb.diffusion.models import source_of
from tests.diffusion.tiny_pipelines import write_tiny
from tests.finetuning.method_parts import ALGORITHMS, PIPELINES
from tests.finetuning.tuning_worlds import make_tuning, tune
from tests.training.worlds import make_training, run_training

EPOCHS = 12
LORA = "pytorch_lora_weights"


def reward(folder: Path, run: Path, resume: bool = False) -> int:
    """The run of the first stage; gives its updates."""
    summary = run_training(make_training(folder, epochs=120), run, resume=resume)
    return 120 * int(summary["data"]["steps_per_epoch"])


def tuning(folder: Path, run: Path, resume: bool = False) -> int:
    """The run of the second stage; gives its updates."""
    return int(tune(make_tuning(epochs=EPOCHS, micro_batch_size=1), run, resume=resume)["steps"])


def algorithm(name: str, folder: Path, run: Path, resume: bool = False) -> int:
    """A run of an algorithm; gives its updates."""
    settings = make_tuning(algorithm=ALGORITHMS[name], micro_batch_size=2)
    return int(tune(settings, run, resume=resume)["steps"])


def family(name: str, folder: Path, run: Path, resume: bool = False) -> int:
    """A run on the tiny pipeline of a family; gives its updates."""
    sampler = PIPELINES[name]
    settings = make_tuning(model=source_of(folder / "pipeline"), rollout=sampler, sampling=sampler, epochs=EPOCHS)
    return int(tune(settings, run, resume=resume)["steps"])


STAGES = {"reward": reward, "tuning": tuning}
STAGES |= {name: partial(algorithm, name) for name in ALGORITHMS if name not in ("refl", "given pairs")}
STAGES |= {name: partial(family, name) for name in PIPELINES}
CLEAN = get_context("forkserver")
"""Processes that have imported nothing but what is preloaded here, once for all of them."""
CLEAN.set_forkserver_preload([__name__])


def go(stage: str, folder: Path, run: Path, ready: Connection) -> None:
    """In a process of its own: begin the run, or go on with it."""
    torch.set_num_threads(1)
    ready.send(True)
    STAGES[stage](folder, run, resume=(run / "checkpoints" / "last.ckpt").exists())


def last_step(run: Path) -> int:
    """The step up to which a run has written its figures."""
    metrics = run / "metrics.csv"
    return int(metrics.read_text().splitlines()[-1].split(",")[0]) if metrics.exists() else 0


def begin_and_kill(stage: str, folder: Path, run: Path, least: float, chance: random.Random) -> None:
    """Begin or resume a run. Kill it after it has written the step `least`, within 0.2 seconds."""
    here, there = CLEAN.Pipe()
    process = CLEAN.Process(target=go, args=(stage, folder, run, there))
    process.start()
    assert here.recv()
    while process.is_alive() and last_step(run) < least:  # in steps, as machines are not equally fast
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.2))
    process.kill()
    process.join()
    assert process.exitcode == -9
    assert not (run / "summary.json").exists()


def assert_same_weights(run: Path, other: Path, file: str) -> None:
    found, expected = (load_file(folder / "export" / f"{file}.safetensors") for folder in (run, other))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "file"), [("reward", "reward"), ("tuning", LORA)])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(tmp_path: Path, stage: str, file: str) -> None:
    steps = STAGES[stage](tmp_path, tmp_path / "whole")
    run, chance = tmp_path / "killed", random.Random(0)
    for least in (0, chance.uniform(0, 0.4) * steps, chance.uniform(0.4, 0.8) * steps):
        begin_and_kill(stage, tmp_path, run, least, chance)
    assert (run / "checkpoints" / "last.ckpt").exists()
    STAGES[stage](tmp_path, run, resume=True)
    assert_same_weights(run, tmp_path / "whole", file)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("reward", "tuning")])
def test_every_algorithm_and_every_family_survives_a_kill(tmp_path: Path, stage: str) -> None:
    if stage in PIPELINES:
        write_tiny(stage, tmp_path / "pipeline")
    steps = STAGES[stage](tmp_path, tmp_path / "whole")
    run = tmp_path / "killed"
    begin_and_kill(stage, tmp_path, run, max(4, 0.3 * steps), random.Random(stage))
    assert (run / "checkpoints" / "last.ckpt").exists()
    STAGES[stage](tmp_path, run, resume=True)
    assert_same_weights(run, tmp_path / "whole", LORA)
