"""Training pictures of the shapes CLIP: damaged renders, and renders redrawn by the base model."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from rich.progress import track
from torch import Tensor

from t2ifb.shapes.grammar import Scene
from t2ifb.shapes.renderer import Placed
from t2ifb.shapes.training import distortions
from t2ifb.shapes.training.autoencoder import encode
from t2ifb.shapes.training.distortions import Damage
from t2ifb.shapes.training.loop import generator, rendered
from t2ifb.shapes.weights import load_pipeline
from t2ifb.utils.devices import fast_cpu_dtype
from t2ifb.utils.files import atomic_write

GRIDS = ((3, 0), (3, 1), (5, 0), (5, 1), (8, 1), (8, 2), (8, 4))
"""Numbers of denoising steps and start steps for redrawing, all equally often."""
GUIDANCE_SCALES = (1.0, 1.0, 4.0, 4.0, 10.0)
"""Guidance scales, all equally often."""
FAINTEST = 0.5
"""Minimum share of a render's latents in the noisy start; pure noise has none."""
VISIBLE = 0.25
"""Minimum distance to the background, in the channel where it is largest, of an object's pixel."""


@dataclass(frozen=True)
class Pictures:
    """Two pictures of every scene: damaged, and redrawn by the base model.

    Attributes:
        scenes: N scenes.
        layouts: Positions of their objects, in both pictures.
        images: (2 N, 3, 64, 64) uint8; scene i has images i and N + i.
        damage: Damage of the 2 N images.
    """

    scenes: list[Scene]
    layouts: list[list[Placed]]
    images: Tensor
    damage: Damage


def make(folder: Path, seed: int, count: int) -> Pictures:
    """Make the pictures of `count` training scenes. Redrawn ones are stored in `folder` and reused."""
    scenes, layouts, clean = rendered("train", count, seed=300 + seed)
    draw = generator(seed, 4)
    damage = distortions.sample(count, draw)
    damaged = torch.empty_like(clean)
    for rows in track(torch.arange(count).split(500), description="damaging pictures"):
        some = distortions.apply(clean[rows].float() / 255, Damage(damage.severity[rows]), draw)
        damaged[rows] = (some * 255).round().to(torch.uint8)
    file = folder / "redrawn.pt"
    if not file.exists():
        again = redraw(load_pipeline(fast_cpu_dtype()), scenes, clean, seed)
        with atomic_write(file) as opened:
            torch.save(again, opened)
    again = torch.load(file, weights_only=True)
    measured = torch.cat([measure(*pair) for pair in zip(clean.split(500), again.split(500), strict=True)])
    return Pictures(scenes, layouts, torch.cat([damaged, again]), Damage(torch.cat([damage.severity, measured])))


@torch.no_grad()
def redraw(
    pipeline: StableDiffusionPipeline, scenes: list[Scene], images: Tensor, seed: int, batch: int = 128
) -> Tensor:
    """Noise the latents of renders and denoise them again (SDEdit, arXiv 2108.01073).

    The result has roughly the render's layout, with the base model's own errors. Errors increase with fewer steps,
    stronger guidance and a fainter render.

    Args:
        pipeline: The base model.
        scenes: N scenes.
        images: (N, 3, 64, 64) uint8, their renders.
        seed: Seed of noise, faintness, grids and guidance.
        batch: Pictures per batch.

    Returns:
        Images (N, 3, 64, 64) uint8.
    """
    draw = generator(seed, 5)
    manners = list(product(GRIDS, GUIDANCE_SCALES))
    chosen = torch.randint(len(manners), (len(images),), generator=draw)
    output = torch.empty_like(images)
    nothing = _text_states(pipeline, [""])
    scaling = pipeline.vae.config.scaling_factor
    chunks = [
        (manner, rows)
        for number, manner in enumerate(manners)
        for rows in (chosen == number).nonzero().flatten().split(batch)
        if len(rows)
    ]
    for ((steps, start), guidance_scale), rows in track(chunks, description="redrawing pictures"):
        pipeline.scheduler.set_timesteps(steps)
        timesteps = pipeline.scheduler.timesteps[start:]
        latents = encode(pipeline.vae, images[rows]) * scaling
        shown = FAINTEST + (1 - FAINTEST) * torch.rand(len(rows), 1, 1, 1, generator=draw)
        noise = torch.randn(latents.shape, generator=draw)
        latents = pipeline.scheduler.add_noise(shown * latents, noise, timesteps[:1].expand(len(rows)))
        states = _text_states(pipeline, [scenes[row].prompt for row in rows.tolist()])
        for timestep in timesteps:
            noise = pipeline.unet(latents.to(states.dtype), timestep, states).sample.float()
            if guidance_scale != 1:
                without = pipeline.unet(latents.to(states.dtype), timestep, nothing.expand_as(states)).sample.float()
                noise = without + guidance_scale * (noise - without)
            latents = pipeline.scheduler.step(noise, timestep, latents).prev_sample
        decoded = pipeline.vae.decode((latents / scaling).to(states.dtype)).sample.float()
        output[rows] = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return output


def measure(clean: Tensor, images: Tensor) -> Tensor:
    """Deviation of pictures from their renders: severities (N, 5) in [0, 1], as in `Damage`.

    `shapes` measures the overlap of the foregrounds, `colors` the difference inside that overlap, `surface` the
    difference outside both. The other two are 0.

    Args:
        clean: (N, 3, 64, 64) uint8, renders.
        images: (N, 3, 64, 64) uint8, the pictures made from them.
    """
    one, other = clean.float() / 255, images.float() / 255
    ground = one[:, :, :2, :2].mean((2, 3), keepdim=True)
    stands_out = [((picture - ground).abs().amax(1) > VISIBLE).float() for picture in (one, other)]
    both, any_ = stands_out[0] * stands_out[1], torch.maximum(*stands_out)
    difference = (one - other).abs().mean(1)
    severity = torch.zeros(len(clean), len(distortions.ASPECTS))
    for aspect, value in {
        "shapes": (1 - both.sum((1, 2)) / any_.sum((1, 2)).clamp(min=1)) / 0.7,
        "colors": (both * difference).sum((1, 2)) / both.sum((1, 2)).clamp(min=1) / 0.25,
        "surface": ((1 - any_) * difference).sum((1, 2)) / (1 - any_).sum((1, 2)).clamp(min=1) / 0.1,
    }.items():
        severity[:, distortions.ASPECTS.index(aspect)] = value.clamp(0, 1)
    return severity


def _text_states(pipeline: StableDiffusionPipeline, prompts: list[str]) -> Tensor:
    options = {"padding": "max_length", "max_length": pipeline.tokenizer.model_max_length, "return_tensors": "pt"}
    return pipeline.text_encoder(input_ids=pipeline.tokenizer(prompts, **options).input_ids)[0]
