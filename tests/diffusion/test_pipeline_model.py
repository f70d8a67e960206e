"""The model of each family draws what its pipeline draws, from the same noise."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from t2ifb.diffusion.sampling import Rollout, Sampler
from t2ifb.diffusion.schedule import ddim, flow
from tests.diffusion.parts import KEYS, PROMPTS
from tests.diffusion.tiny_pipelines import FAMILIES, plain_pipeline, tiny_model, write_tiny

SIZES = {"stable diffusion": [(64, 64), (64, 32)], "sdxl": [(16, 16), (24, 16)], "sd3": [(16, 16), (16, 24)]}
"""Height and width of images: the usual size, and another aspect ratio."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, write_tiny(request.param, tmp_path_factory.mktemp("pipeline"))


@pytest.mark.parametrize("size", [0, 1], ids=["usual size", "other size"])
def test_the_images_are_the_pipelines(family: tuple[str, Path], size: int) -> None:
    name, folder = family
    height, width = SIZES[name][size]
    pipeline, model = plain_pipeline(folder), tiny_model(folder, height=height, width=width)
    schedule: Any = flow if name == "sd3" else partial(ddim, eta=0.0)
    if name != "sd3":
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    assert model.image_size == (height, width)
    for scale in (1.0, 5.0):
        sampler = Sampler(4, scale, schedule)
        steps = sampler.schedule_of(model)
        rollout = Rollout(steps, KEYS, model.latent_shape, "cpu")
        theirs = pipeline(
            PROMPTS, latents=rollout.latents.clone(), guidance_scale=scale, num_inference_steps=4, height=height,
            width=width, output_type="pt",
        ).images  # fmt: skip
        with torch.no_grad():
            ours = model.decode(rollout.to(4, sampler.denoiser(model, steps, PROMPTS)))
        assert ours.shape == (2, 3, height, width) and float(ours.std()) > 0.01
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-4
