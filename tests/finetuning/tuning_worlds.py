"""A small fine-tuning run on the embedded world's own pipeline, and a reward that wants dark pictures."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from t2ifb.data.prompts import PromptList, PromptSplits
from t2ifb.diffusion.lora import LoRA
from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource
from t2ifb.diffusion.sampling import Sampler
from t2ifb.finetuning.refl import ReFL
from t2ifb.finetuning.run import FineTuner
from t2ifb.scorers import RewardModel
from t2ifb.scorers.clip import CLIPSource
from t2ifb.scorers.heads import MLPHead
from t2ifb.shapes.weights import CLIP, PIPELINE
from t2ifb.training.loggers import no_logger
from tests.diffusion.parts import PROMPTS

FEW = (
    "+experiment=refl", "rollout.num_inference_steps=3", "algorithm.algorithm.window=[0,2]",
    "sampling.num_inference_steps=3", "algorithm.algorithm.gradients_per_rollout=1", "algorithm.batch_size=2",
    "algorithm.validation_prompts=2", "algorithm.validate_every=1", "algorithm.epochs=1", "prompts.train.count=4",
    "prompts.test.count=2", "prompts.validation.count=2", "algorithm.standardise=false",
    "algorithm.guidance_scales=[]",
)  # fmt: skip
"""Arguments of a run of two updates, which takes seconds."""


def export_reward(folder: Path) -> Path:
    """A reward model that learned nothing."""
    encoder = CLIPSource(f"local-dir:{CLIP}").load()
    torch.manual_seed(0)
    head = MLPHead(encoder.encode_prompts(["a red circle"]).shape[1], [16], [])
    RewardModel(encoder, head).save_pretrained(folder)
    return folder


class Redness(nn.Module):
    """How much red a picture has."""

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


class Darkness(nn.Module):
    """How dark a picture is."""

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return 1 - images.mean((1, 2, 3))


def make_tuning(**changes: Any) -> FineTuner:
    settings: dict[str, Any] = {
        "model": StableDiffusionSource(str(PIPELINE)),
        "lora": LoRA(),
        "reward": Darkness(),
        "optimizer": partial(torch.optim.AdamW, lr=1e-3),
        "prompts": PromptSplits(
            PromptList([*PROMPTS, PROMPTS[0]]),
            PromptList(["a green star on a white background", "a blue square on a gray background"]),
            PromptList(["a cyan circle on a black background", "two red squares on a white background"]),
        ),
        "rollout": Sampler(4, 1.0),
        "sampling": Sampler(4, 1.0),
        "judges": {"redness": Redness()},
        "algorithm": ReFL([1, 3]),
        "batch_size": 2,
        "epochs": 3,
        "validate_every": 2,
        "validation_prompts": 2,
        "images_per_prompt": 1,
        "gradient_clip_norm": 1.0,
        "cache_folder": False,
        "output_dir": "run",
    }
    settings |= changes
    if hasattr(settings["algorithm"], "alpha"):
        settings = {"alpha": 1.0, "beta": 1e-6} | settings
    return FineTuner(**settings)


def tune(
    tuning: FineTuner,
    folder: Path,
    resume: bool = False,
    callbacks: list[lightning.Callback] | None = None,
    logger: Callable[..., Any] = no_logger,
    seed: int = 0,
    fp16: float | None = None,
    pictures: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Run it in a folder; further callbacks watch or disturb it.

    With `fp16` it runs under autocast in fp16 and a GradScaler that begins with this scale, both on the CPU. Without
    `pictures` its PNG files are empty, which saves about a second.
    """

    def trainer(**arguments: Any) -> lightning.Trainer:
        arguments["callbacks"] += callbacks or []
        if fp16 is not None:
            scaler = torch.amp.GradScaler("cpu", init_scale=fp16, growth_interval=3)
            arguments["plugins"].append(MixedPrecision("16-mixed", "cpu", scaler))
        return lightning.Trainer(accelerator="cpu", enable_progress_bar=True, **arguments, **options)

    tuning.output_dir, tuning.trainer, tuning.logger = folder, trainer, logger
    tuning.seed, tuning.resume = seed, resume
    with pytest.MonkeyPatch.context() as monkeypatch:
        if not pictures:
            for drawn in ("validation.progress_sheet", "results.progress_sheet", "results.tuning_curves"):
                monkeypatch.setattr(f"t2ifb.finetuning.{drawn}", lambda *given: Path(given[-1]).touch())
        return tuning.fit()
