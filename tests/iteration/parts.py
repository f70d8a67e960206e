"""A small iteration in the embedded world."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from PIL import Image

from t2ifb.data.drawn import INDEX
from t2ifb.data.prompts import PromptList, PromptSplits
from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource
from t2ifb.diffusion.sampling import Sampler
from t2ifb.finetuning.refl import ReFL
from t2ifb.finetuning.run import FineTuner
from t2ifb.iteration.run import Iteration
from t2ifb.reward_learning.run import RewardTrainer
from t2ifb.scorers.clip import CLIPSource
from t2ifb.scorers.heads import MLPHead
from t2ifb.shapes.grammar import scenes
from t2ifb.shapes.weights import CLIP, PIPELINE
from tests.annotation.parts import write_generated
from tests.finetuning.tuning_worlds import Redness

PROMPTS = [scene.prompt for scene in scenes("train", 24, seed=0)]
ON_CPU = partial(lightning.Trainer, accelerator="cpu", devices=1)


def darkest_first(images: Sequence[Image.Image], prompt: str) -> list[int]:
    """Ranks of images by their brightness; a ranking depends on nothing else."""
    brightness = [float(np.mean(np.array(image))) for image in images]
    return [1 + sum(other < own for other in brightness) for own in brightness]


def make_iteration(folder: Path, data: Path, **changes: Any) -> Iteration:
    """Rounds without an initial data set. Each has six prompts of two images, and two updates of both models.

    Args:
        folder: Folder of the rounds.
        data: Folder of caches.
        changes: Arguments that replace the usual ones.
    """
    tuner = partial(
        FineTuner,
        model=StableDiffusionSource(str(PIPELINE)),
        prompts=PromptSplits(PromptList(PROMPTS[:20]), PromptList(PROMPTS[20:22]), PromptList(PROMPTS[22:])),
        algorithm=ReFL([0, 1], alpha=1.0, beta=1e-6),
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        sampling=Sampler(2, 1.0),
        judges={"redness": Redness()},
        batch_size=10,
        epochs=1,
        validate_every=1,
        validation_prompts=2,
        images_per_prompt=1,
        best_of=1,
        cache_folder=False,
        trainer=ON_CPU,
    )
    reward_trainer = partial(
        RewardTrainer,
        encoder=CLIPSource(f"local-dir:{CLIP}"),
        head=partial(MLPHead, hidden=[8], dropout=[0.0]),
        optimizer=partial(torch.optim.Adam, lr=1e-2),
        cache_folder=data / "embeddings",
        epochs=2,
        trainer=ON_CPU,
    )
    settings: dict[str, Any] = {
        "tuner": tuner,
        "reward_trainer": reward_trainer,
        "rounds": 2,
        "prompts_per_round": 6,
        "images_per_prompt": 2,
        "annotators": {"dark": darkest_first},
        "held_out": 0.2,
    }
    return Iteration(output_dir=folder, **(settings | changes))


def write_images(folder: Path, prompts: int = 6) -> Path:
    """A complete folder of images, three of each prompt, one of them hostile."""
    write_generated(folder, prompts, copies=3, models=("base",))
    assert (folder / INDEX).is_file()
    return folder
