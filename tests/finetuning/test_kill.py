"""A real SIGKILL, at moments that nobody chose."""

import random
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.finetuning.tuning_worlds import make_tuning, tune
from tests.training.worlds import make_training, run_training


def reward(folder: Path, run: Path, resume: bool = False) -> int:
    """The run of the first stage; gives its updates."""
    summary = run_training(make_training(folder, epochs=120), run, resume=resume)
    return 120 * int(summary["data"]["steps_per_epoch"])


def tuning(folder: Path, run: Path, resume: bool = False) -> int:
    """The run of the second stage; gives its updates."""
    return int(tune(make_tuning(epochs=12, micro_batch_size=1), run, resume=resume)["steps"])


STAGES = {"reward": reward, "tuning": tuning}
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


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "file"), [("reward", "reward"), ("tuning", "pytorch_lora_weights")])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(tmp_path: Path, stage: str, file: str) -> None:
    steps = STAGES[stage](tmp_path, tmp_path / "whole")
    run, chance = tmp_path / "killed", random.Random(0)
    for least in (0, chance.uniform(0, 0.4) * steps, chance.uniform(0.4, 0.8) * steps, None):
        assert least is not None or (run / "checkpoints" / "last.ckpt").exists()
        here, there = CLEAN.Pipe()
        process = CLEAN.Process(target=go, args=(stage, tmp_path, run, there))
        process.start()
        assert here.recv()
        if least is None:
            process.join()
            assert process.exitcode == 0
            break
        while process.is_alive() and last_step(run) < least:  # in steps, as machines are not equally fast
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.2))
        process.kill()
        process.join()
        assert process.exitcode == -9
        assert not (run / "summary.json").exists()
    one, other = (load_file(folder / "export" / f"{file}.safetensors") for folder in (run, tmp_path / "whole"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
