"""The world's trained weights, in the public formats; `make world` makes them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline

PIPELINE = Path(__file__).parent / "pipeline"
"""A `diffusers` folder that `StableDiffusionPipeline.from_pretrained` loads."""
FLOW = Path(__file__).parent / "flow"
"""A `diffusers` folder that `StableDiffusion3Pipeline.from_pretrained` loads, given `text_encoder_3=None` and
`tokenizer_3=None`."""
FLOW_T5_TOKENS = 1
"""Tokens that stand for the missing T5 in `FLOW`, in training and sampling: the pipeline's `max_sequence_length`."""
CLIP = Path(__file__).parent / "clip"
"""An `open_clip` folder that `open_clip.create_model("local-dir:...")` loads."""
TUNED = Path(__file__).parent / "dpo"
"""Adapters for `PIPELINE`, tuned by `+experiment=dpo`."""
BLIP, IMAGE_REWARD, AESTHETIC = (Path(__file__).parent / name for name in ("blip", "image_reward", "aesthetic"))
"""Folders that `BLIPScore`, `ImageReward` and `AestheticScore.from_pretrained` load."""


def load_pipeline(dtype: "torch.dtype") -> "StableDiffusionPipeline":
    """The world's base model, silent, with the attention that is fastest on a CPU."""
    from diffusers import StableDiffusionPipeline

    return _silent(StableDiffusionPipeline, PIPELINE, dtype)


def load_flow(dtype: "torch.dtype") -> "StableDiffusion3Pipeline":
    """The world's rectified flow, silent. Call it with `max_sequence_length=FLOW_T5_TOKENS`."""
    from diffusers import StableDiffusion3Pipeline

    return _silent(StableDiffusion3Pipeline, FLOW, dtype, text_encoder_3=None, tokenizer_3=None)


def _silent(kind: Any, folder: Path, dtype: "torch.dtype", **options: None) -> Any:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    pipeline = kind.from_pretrained(folder, dtype=dtype, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
