"""The world's trained weights, in the public formats; `make world` makes them."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

PIPELINE = Path(__file__).parent / "pipeline"
"""A `diffusers` folder that `StableDiffusionPipeline.from_pretrained` loads."""
FLOW = Path(__file__).parent / "flow"
"""A `diffusers` folder that `StableDiffusion3Pipeline.from_pretrained` loads."""
CLIP = Path(__file__).parent / "clip"
"""An `open_clip` folder that `open_clip.create_model("local-dir:...")` loads."""
BLIP, IMAGE_REWARD, AESTHETIC = (Path(__file__).parent / name for name in ("blip", "image_reward", "aesthetic"))
"""Folders that `BLIPScore`, `ImageReward` and `AestheticScore.from_pretrained` load."""


def load_pipeline(dtype: "torch.dtype") -> "StableDiffusionPipeline":
    """The world's base model, silent, with the attention that is fastest on a CPU."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    pipeline = StableDiffusionPipeline.from_pretrained(PIPELINE, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
