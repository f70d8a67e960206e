"""A fine-tuning run of the embedded pipeline, as far as others read it."""

from functools import partial
from pathlib import Path

import torch

from t2ifb.diffusion.lora import LoRA, save_lora
from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource
from t2ifb.diffusion.sampling import Sampler
from t2ifb.shapes.weights import PIPELINE

DIFFUSION = partial(StableDiffusionSource, str(PIPELINE), device="cpu")
SAMPLING = partial(Sampler, 2, 1.0)


def write_tuned_run(folder: Path) -> Path:
    """Write a finished run whose adapters were moved at random; gives its folder."""
    model = DIFFUSION().load()
    for weight in LoRA().add(model):
        weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    (folder / "export").mkdir(parents=True)
    save_lora(model, folder / "export", PIPELINE, "A test.")
    (folder / "summary.json").write_text("{}")
    return folder
