"""A preference data set of a few random pictures in which brighter is better, a run on it, and what disturbs it."""

import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import Logger
from PIL import Image
from safetensors.torch import load_file

from t2ifb.data.datasets.imagereward_db import ImageRewardDB, Record, write_imagereward_db
from t2ifb.reward_learning.run import RewardTrainer
from t2ifb.scorers.clip import CLIPSource
from t2ifb.scorers.clip_score import CLIPScore
from t2ifb.scorers.heads import MLPHead
from t2ifb.training.loggers import no_logger
from tests.scorers.parts import tiny_clip

PICTURES = (
    "reward_learning.run.learning_curves",
    *(f"evaluation.plots.{name}" for name in ("reward_by_rank", "calibration_plot", "ranking_sheet")),
)
"""What draws the pictures of a reward run; their last argument is the file."""


def brightness_world(folder: Path, prompts: int = 24) -> ImageRewardDB:
    """Four pictures a prompt, ranked by brightness, in ImageRewardDB's layout."""
    for name, content in _brightness_files(prompts).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return ImageRewardDB(folder)


@cache
def _brightness_files(prompts: int) -> dict[Path, bytes]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        _write_brightness(folder, prompts)
        return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _write_brightness(folder: Path, prompts: int) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        records = []
        for number in range(prompts):
            levels = rng.permutation(4)
            for level in levels:
                pixels = rng.integers(0, 60, (16, 16, 3)) + 60 * level
                records.append(
                    Record(
                        prompt_id=f"{split}-{number}",
                        prompt=f"picture {number} of {split}",
                        classification="test",
                        image=Image.fromarray(pixels.astype(np.uint8)),
                        rank=4 - int(level),
                        overall_rating=4,
                        image_text_alignment_rating=4,
                        fidelity_rating=4,
                    )
                )
        write_imagereward_db(folder, split, records, images_per_archive=50)


def make_training(folder: Path, **changes: Any) -> RewardTrainer:
    """A small reward run over the brightness world; data, encoder and cache lie in `folder` and are made once."""
    data, clip = folder / "data", folder / "clip"
    dataset = ImageRewardDB(data) if data.exists() else brightness_world(data)
    encoder = CLIPSource(f"local-dir:{clip if clip.exists() else tiny_clip(clip)}")
    settings = {
        "dataset": dataset,
        "encoder": encoder,
        "head": partial(MLPHead, hidden=[16, 8], dropout=[0.1, 0.1]),
        "optimizer": partial(torch.optim.Adam, lr=3e-3),
        "output_dir": folder / "run",
        "cache_folder": folder / "cache",
        "batch_size": 24,
        "epochs": 5,
        "baselines": {"CLIP Score": CLIPScore(encoder)},
    }
    return RewardTrainer(**(settings | changes))


def run_training(
    training: RewardTrainer,
    folder: Path,
    resume: bool = False,
    callbacks: list[lightning.Callback] | None = None,
    logger: Callable[..., Any] = no_logger,
    seed: int = 0,
    pictures: bool = False,
) -> dict[str, Any]:
    """Run it in a folder; further callbacks watch or disturb it.

    Without `pictures` or a logger its PNG files are empty, which saves about a second.
    """

    def trainer(**arguments: Any) -> lightning.Trainer:
        arguments["callbacks"] += callbacks or []
        return lightning.Trainer(accelerator="cpu", **arguments)

    training.output_dir, training.trainer, training.logger = folder, trainer, logger
    training.seed, training.resume = seed, resume
    with pytest.MonkeyPatch.context() as monkeypatch:
        if not pictures and logger is no_logger:
            for drawn in PICTURES:
                monkeypatch.setattr(f"t2ifb.{drawn}", write_empty)
        return training.fit()


def write_empty(*arguments: Any) -> None:
    """Write an empty file, as its name is the last argument."""
    arguments[-1].parent.mkdir(exist_ok=True)
    arguments[-1].touch()


class FailingLogger(Logger):
    """Fails at one of its methods, and must not be called afterwards."""

    name, version = "failing", 0

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at, self.has_failed = at, False
        self.call("init")

    def call(self, method: str) -> None:
        assert not self.has_failed
        if method == self.at:
            self.has_failed = True
            raise ConnectionError("the service has gone")

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.call("log_metrics")

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        self.call("log_hyperparams")


class Killed(Exception):
    """What stands for a kill."""


class KillAt(lightning.Callback):
    """Raises, or sends a signal, in the middle of an update."""

    def __init__(self, step: int, number: int | None = None) -> None:
        self.step, self.number = step, number

    def on_before_optimizer_step(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            if self.number is None:
                raise Killed
            os.kill(os.getpid(), self.number)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "reward.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
