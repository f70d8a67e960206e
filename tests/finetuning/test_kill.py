"""A real SIGKILL, at moments that nobody chose."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import CHECKOUT
from tests.finetuning.tuning_worlds import make_tuning, tune
from tests.training.worlds import make_training, run_training

TUNING = """
import sys
from pathlib import Path
from tests.finetuning.tuning_worlds import make_tuning, tune
run = Path(sys.argv[2])
print("ready", flush=True)
tune(make_tuning(epochs=12, micro_batch_size=1), run, resume=(run / "checkpoints" / "last.ckpt").exists())
"""
PROGRAM = """
import sys
from pathlib import Path
from tests.training.worlds import make_training, run_training
folder, run = Path(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
run_training(make_training(folder, epochs=120), run, resume=(run / "checkpoints" / "last.ckpt").exists())
"""


def last_step(run: Path) -> int:
    """The step up to which a run has written its figures."""
    metrics = run / "metrics.csv"
    return int(metrics.read_text().splitlines()[-1].split(",")[0]) if metrics.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "file"), [("reward", "reward"), ("tuning", "pytorch_lora_weights")])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(tmp_path: Path, stage: str, file: str) -> None:
    if stage == "reward":
        steps = 120 * run_training(make_training(tmp_path, epochs=120), tmp_path / "whole")["data"]["steps_per_epoch"]
    else:
        steps = tune(make_tuning(epochs=12, micro_batch_size=1), tmp_path / "whole")["steps"]
    run, chance = tmp_path / "killed", random.Random(0)
    command = [sys.executable, "-c", PROGRAM if stage == "reward" else TUNING, str(tmp_path), str(run)]
    for least in (0, chance.uniform(0, 0.4) * steps, chance.uniform(0.4, 0.8) * steps):
        process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        while process.poll() is None and last_step(run) < least:  # in steps, as machines are not equally fast
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.2))
        process.kill()
        assert process.wait() == -9
        assert not (run / "summary.json").exists()
    assert (run / "checkpoints" / "last.ckpt").exists()
    subprocess.run(command, cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
    one, other = (load_file(folder / "export" / f"{file}.safetensors") for folder in (run, tmp_path / "whole"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
