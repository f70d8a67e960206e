"""The embedded world's own pipeline, which is small enough for tests."""

import copy
from functools import cache

import torch
from torch import Tensor

from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource
from t2ifb.diffusion.pipeline_model import PipelineModel
from t2ifb.shapes.weights import PIPELINE

PROMPTS = ["a red circle on a gray background", "two blue stars on a white background"]
KEYS = [(7, 0), (7, 1)]


def shapes_model(precision: str = "fp32") -> PipelineModel:
    """A model of one's own: a copy, because reading the files takes longer."""
    return copy.deepcopy(_read(precision))


@cache
def _read(precision: str) -> PipelineModel:
    return StableDiffusionSource(str(PIPELINE), precision=precision, device="cpu").load()  # type: ignore[arg-type]


def at(time: int, count: int = 2) -> Tensor:
    """The same time for each sample."""
    return torch.full((count,), time)
