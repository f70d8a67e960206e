"""The embedded world's own pipeline, which is small enough for tests."""

from t2ifb.diffusion.model import DiffusionModel
from t2ifb.diffusion.source import DiffusionSource
from t2ifb.shapes.weights import PIPELINE

PROMPTS = ["a red circle on a gray background", "two blue stars on a white background"]
KEYS = [(7, 0), (7, 1)]


def shapes_model(precision: str = "fp32") -> DiffusionModel:
    return DiffusionSource(str(PIPELINE), precision=precision, device="cpu").load()  # type: ignore[arg-type]
