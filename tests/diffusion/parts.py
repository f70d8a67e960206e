"""The embedded world's own pipeline, which is small enough for tests, and paths by a scheduler's configuration."""

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from t2ifb.diffusion.models.stable_diffusion import StableDiffusionModel, StableDiffusionSource
from t2ifb.diffusion.path import GaussianPath
from t2ifb.shapes.weights import PIPELINE

PROMPTS = ["a red circle on a gray background", "two blue stars on a white background"]
KEYS = [(7, 0), (7, 1)]


def shapes_model(precision: str = "fp32") -> StableDiffusionModel:
    """A model of one's own: a copy, because reading the files takes longer."""
    return copy.deepcopy(_read(precision))


@cache
def _read(precision: str) -> StableDiffusionModel:
    return StableDiffusionSource(str(PIPELINE), precision=precision, device="cpu").load()  # type: ignore[arg-type]


def path_of(config: Mapping[str, Any]) -> GaussianPath:
    """The path of a pipeline with this scheduler."""
    if config["_class_name"] == "FlowMatchEulerDiscreteScheduler":
        flow: Any = FlowMatchEulerDiscreteScheduler.from_config(dict(config))
        return GaussianPath.rectified_flow(flow.sigmas, config)
    scheduler: Any = DDPMScheduler.from_config(dict(config))
    return GaussianPath.variance_preserving(scheduler.alphas_cumprod, config)


def at(time: int, count: int = 2) -> Tensor:
    """The same time for each sample."""
    return torch.full((count,), time)
