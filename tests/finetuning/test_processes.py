"""Several processes: together they do what one does."""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import lightning
import pytest
import torch
from safetensors.torch import load_file

from t2ifb.reward_learning.module import RewardModule
from t2ifb.scorers import RewardModel
from t2ifb.scorers.clip import CLIPSource
from t2ifb.scorers.heads import MLPHead
from t2ifb.shapes.weights import CLIP
from t2ifb.training.metrics import read_metrics
from tests.conftest import CHECKOUT, Command
from tests.training.worlds import make_training


def fit(folder: Path, processes: int) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Some updates without dropout on rankings that do not divide evenly; the last figures and the weights."""
    training = make_training(folder, batch_size=29)
    data = training.data(feed=training.cache, seed=0)
    data.prepare_data()
    width = data.encoded("train").images.gather(slice(0, 1)).shape[1]
    torch.manual_seed(0)
    head = MLPHead(width, hidden=[16, 8], dropout=[])
    module = RewardModule(head, partial(torch.optim.SGD, lr=0.1), seed=0)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=processes, strategy="ddp_spawn" if processes > 1 else "auto", max_steps=12,
        max_epochs=-1, val_check_interval=6, check_val_every_n_epoch=None, num_sanity_val_steps=0,
        use_distributed_sampler=False, log_every_n_steps=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, data)
    return {k: float(v) for k, v in trainer.callback_metrics.items()}, module.head.state_dict()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="gloo between processes of one machine is tried on Linux")
def test_two_processes_train_and_judge_as_one(tmp_path: Path) -> None:
    (one, single), (two, shared) = (fit(tmp_path, processes) for processes in (1, 2))
    for key in ("val/accuracy", "val/loss", "train/loss", "train/accuracy"):
        assert two[key] == pytest.approx(one[key], rel=1e-5), key
    for name, value in single.items():
        torch.testing.assert_close(shared[name], value)


def train(*arguments: str, data: Path, stop_at: Path | None = None) -> None:
    """Run the command to its end, or interrupt it as soon as a file is there."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "T2IFB_DATA": str(data)}
    command = [sys.executable, "-m", "t2ifb.train", *arguments]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, env=environment) as process:
        while stop_at is not None and not stop_at.exists() and process.poll() is None:
            time.sleep(0.02)
        if stop_at is not None:
            process.terminate()
    assert (process.returncode != 0) == (stop_at is not None)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="gloo between processes of one machine is tried on Linux")
def test_two_processes_tune_and_judge_as_one_also_after_a_beginning_on_one(run_here: Command, tmp_path: Path) -> None:
    """A batch of three and five samples, which do not divide evenly; rounding is not blown up by Adam's division."""
    encoder = CLIPSource(f"local-dir:{CLIP}").load()
    torch.manual_seed(0)
    RewardModel(encoder, MLPHead(encoder.encode_prompts(["a red circle"]).shape[1], [4], [])).save_pretrained(
        tmp_path / "reward"
    )
    few = [
        "+experiment=refl", "logger=none", f"reward.source={tmp_path / 'reward'}", "rollout.num_inference_steps=4",
        "sampling.num_inference_steps=4", "algorithm.algorithm.window=[1,3]",
        "algorithm.algorithm.gradients_per_rollout=2",
        "algorithm.batch_size=3", "algorithm.validation_prompts=5", "algorithm.images_per_prompt=1",
        "algorithm.validate_every=2", "algorithm.epochs=1", "prompts.train.count=12", "prompts.test.count=5",
        "optimizer.eps=0.01", "optimizer.lr=0.01", "algorithm.standardise=false",
        "algorithm.guidance_scales=[4]", "algorithm.best_of=2",
        f"algorithm.cache_folder={tmp_path / 'kept'}",
    ]  # fmt: skip
    runs = {"one": ["trainer.accelerator=cpu"], "two": ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]}
    done = run_here("t2ifb.train", *few, *runs["one"], f"hydra.run.dir={tmp_path / 'one'}")
    assert done.returncode == 0, done.stderr
    data, moved = tmp_path / "data", tmp_path / "moved"
    train(*few, *runs["two"], f"hydra.run.dir={tmp_path / 'two'}", data=data)
    train(*few, *runs["one"], f"hydra.run.dir={moved}", data=data, stop_at=moved / "checkpoints" / "last.ckpt")
    assert not (moved / "summary.json").exists()
    train(f"resume={moved}", *runs["two"], data=data)
    one, two = (load_file(tmp_path / name / "export" / "pytorch_lora_weights.safetensors") for name in runs)
    assert (
        max(float(weight.abs().max()) for name, weight in one.items() if "lora_B" in name or "lora.up" in name) > 1e-4
    )
    resumed = load_file(moved / "export" / "pytorch_lora_weights.safetensors")
    for name, weight in one.items():
        for other in (two, resumed):
            torch.testing.assert_close(other[name], weight, rtol=1e-3, atol=5e-6)
    rows = [read_metrics(tmp_path / name / "metrics.csv") for name in runs]
    for single, shared in zip(*rows, strict=True):
        for key in single.keys() - {"wall_seconds"}:
            least = 1e-4 if key == "val/judges" else 1e-5  # a mean of small differences over deviations
            assert shared[key] == pytest.approx(single[key], rel=2e-3, abs=least), key
    swept = [json.loads((tmp_path / name / "guidance_scales.json").read_text()) for name in runs]
    for alone, shared in zip(*swept, strict=True):
        assert (alone["name"], alone["scale"]) == (shared["name"], shared["scale"])
        if alone["name"] in ("gold", "clip_score"):
            for side in ("base", "tuned"):
                assert shared[side] == pytest.approx(alone[side], rel=2e-3, abs=1e-3)
    tables = [(tmp_path / name / "table_kept.md").read_text() for name in runs]
    assert tables[0].splitlines()[:2] == tables[1].splitlines()[:2] and len(tables[0]) == len(tables[1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="gloo between processes of one machine is tried on Linux")
def test_an_empty_first_share_and_an_overflow_in_one_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.finetuning.two_in_fp16", str(tmp_path)]
    ended = subprocess.run(
        command, cwd=CHECKOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"seen_{rank}.json").read_text()) for rank in (0, 1))
    assert [[row["own"] for row in rows] for rows in (first, second)] == [[True] * 4, [True, False, True, False]]
    for rows in (first, second):
        assert [row["scale"] for row in rows] == [64.0, 32.0, 32.0, 16.0]
    assert [row["weights"] for row in first] == [row["weights"] for row in second]
    assert [row["weights"] == before["weights"] for before, row in zip(first, first[1:], strict=False)] == [
        True, False, True
    ]  # fmt: skip
    assert json.loads((tmp_path / "summary.json").read_text())["overflowed_updates"] == 2
