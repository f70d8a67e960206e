"""What runs that Lightning drives have in common."""

import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment

from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource
from t2ifb.training.metrics import MetricsCSV
from t2ifb.training.nan_guard import NanGuard
from t2ifb.training.run_folder import RunFolder
from t2ifb.training.trainer import (
    ProgressBar,
    WholeCheckpointIO,
    make_trainer,
    named_gpu,
    on_usable_device,
    work_device,
)
from tests.finetuning.tuning_worlds import make_tuning
from tests.training.worlds import make_training


def test_the_bar_of_a_resumed_run_is_as_long_as_the_whole_run() -> None:
    bar = ProgressBar()
    bar._trainer = SimpleNamespace(max_epochs=-1, max_steps=120, global_step=60, num_training_batches=float("inf"))  # type: ignore[assignment]
    assert bar.total_train_batches == 120


def test_callbacks_and_plugins_of_the_user_are_kept(tmp_path: Path) -> None:
    mine, environment = lightning.Callback(), LightningEnvironment()
    run = RunFolder(tmp_path)
    for callbacks, plugins in ((mine, environment), ([mine], [environment])):
        trainer = partial(lightning.Trainer, accelerator="cpu", callbacks=callbacks, plugins=plugins)
        made = make_trainer(trainer, run, False, 4, 2, "val/loss", MetricsCSV(run), NanGuard(3))
        assert mine in made.callbacks and any(isinstance(each, NanGuard) for each in made.callbacks)
        assert made._accelerator_connector.cluster_environment is environment
        assert isinstance(made.strategy.checkpoint_io, WholeCheckpointIO)


def test_advice_on_metrics_that_are_equal_in_all_processes_is_not_shown(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        run = RunFolder(tmp_path)
        trainer = partial(lightning.Trainer, accelerator="cpu")
        make_trainer(trainer, run, False, 4, 2, "val/loss", MetricsCSV(run), NanGuard(3))
        warnings.warn("It is recommended to use `self.log('val/gold', ..., sync_dist=True)` when", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    texts = [str(warning.message) for warning in shown]
    assert "something else" in texts and not any("sync_dist" in text for text in texts)


def test_the_accelerator_is_settled_before_anything_is_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen = on_usable_device(partial(lightning.Trainer, accelerator="auto", devices=1))
    assert chosen.keywords == {"accelerator": "cpu", "devices": 1}  # type: ignore[attr-defined]
    assert on_usable_device(lightning.Trainer) is lightning.Trainer
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("t2ifb.utils.devices.gpu_error", lambda index: "the GPU P100 is too old.")
    trainer = partial(lightning.Trainer, accelerator="gpu")
    tuning = make_tuning(model=StableDiffusionSource("no/model"), output_dir=tmp_path / "tuned", trainer=trainer)
    for training in (tuning, make_training(tmp_path, trainer=trainer)):
        with pytest.raises(ValueError, match="accelerator=gpu: the GPU P100 is too old"):
            training.fit()


def test_a_trainer_that_names_its_gpus_decides_where_images_are_embedded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    named = {"gpu": [2, 5], "cuda": [3], "cpu": [2, 5]}
    found = {wish: named_gpu(partial(lightning.Trainer, accelerator=wish, devices=d)) for wish, d in named.items()}
    assert found == {"gpu": "cuda:5", "cuda": "cuda:3", "cpu": None}
    assert named_gpu(partial(lightning.Trainer, accelerator="gpu", devices=2)) is named_gpu(lightning.Trainer) is None
    assert work_device(partial(lightning.Trainer, accelerator="gpu", devices=[1])) == "cuda:1"
    assert work_device(partial(lightning.Trainer, accelerator="cpu")) == "cpu"
    assert work_device(lightning.Trainer) == "auto"
    training = make_training(tmp_path, trainer=partial(lightning.Trainer, accelerator="cpu"))
    monkeypatch.setattr("t2ifb.reward_learning.run.named_gpu", lambda trainer: "cuda:7")
    with pytest.raises(ValueError, match="device=cuda:7 is not on this machine"):
        training.fit()
