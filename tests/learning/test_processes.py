"""Several processes: together they do what one does."""

import sys
from functools import partial
from pathlib import Path

import lightning
import pytest
import torch

from t2ifb.learning.reward_module import RewardModule
from t2ifb.scorers.heads import MLPHead
from tests.learning.worlds import make_training


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
