"""What the world's CLIP looks at: renders that were damaged, and renders that the base model drew once more."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from rich.progress import track
from torch import Tensor

from t2ifb.data.files import atomic_write
from t2ifb.shapes.grammar import Scene
from t2ifb.shapes.training import distortions
from t2ifb.shapes.training.autoencoder import encode
from t2ifb.shapes.training.distortions import Damage
from t2ifb.shapes.training.loop import generator, rendered
from t2ifb.shapes.weights import load_pipeline

STEPS = 8
"""Of the grid of denoising steps that drawing again goes in at."""
STARTS = (2, 3, 4, 5, 6, 7)
"""Where on that grid it goes in; from the first two almost nothing of the render is left."""
GUIDED, GUIDANCE_SCALE = 0.4, 4.0
"""Share of pictures that are drawn with guidance, and how strong it is."""
DEFORMED_FROM = 650
"""Timestep from which a picture that was drawn again counts as wholly deformed."""


@dataclass(frozen=True)
class Pictures:
    """Every scene twice: damaged, and drawn again by the base model.

    Attributes:
        scenes: N scenes.
        images: (2 N, 3, 64, 64) uint8; scene i has the images i and N + i.
        damage: Of the 2 N images.
    """

    scenes: list[Scene]
    images: Tensor
    damage: Damage


def make(folder: Path, seed: int, count: int) -> Pictures:
    """Make the pictures of `count` training scenes; those drawn again are kept in `folder` and made once."""
    scenes, clean = rendered("train", count, seed=300 + seed)
    draw = generator(seed, 4)
    damage = distortions.sample(count, draw)
    images = torch.empty(2 * count, *clean.shape[1:], dtype=torch.uint8)
    for rows in track(torch.arange(count).split(500), description="damaging pictures"):
        damaged = distortions.apply(clean[rows].float() / 255, Damage(damage.severity[rows]), draw)
        images[rows] = (damaged * 255).round().to(torch.uint8)
    file = folder / "redrawn.pt"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        drawn_again = dict(zip(("images", "timesteps"), redraw(load_pipeline(torch.bfloat16), scenes, clean, seed)))
        with atomic_write(file) as opened:
            torch.save(drawn_again, opened)
    redrawn = torch.load(file, weights_only=True)
    images[count:] = redrawn["images"]
    severity = torch.zeros_like(damage.severity)
    severity[:, distortions.ASPECTS.index("shapes")] = (redrawn["timesteps"] / DEFORMED_FROM).clamp(max=1)
    return Pictures(scenes, images, Damage(torch.cat([damage.severity, severity])))


@torch.no_grad()
def redraw(
    pipeline: StableDiffusionPipeline, scenes: list[Scene], images: Tensor, seed: int, batch: int = 128
) -> tuple[Tensor, Tensor]:
    """Noise the latents of renders and denoise them again (SDEdit, arXiv 2108.01073).

    What comes out has the render's layout and the base model's own faults, the more of them the more noise there was.

    Args:
        pipeline: The base model.
        scenes: N scenes.
        images: (N, 3, 64, 64) uint8, their renders.
        seed: Of noise, starts and guidance.
        batch: Pictures that are denoised together.

    Returns:
        Images (N, 3, 64, 64) uint8, and for each the timestep it was noised to, (N,) float32.
    """
    draw = generator(seed, 5)
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(STEPS)
    start = torch.randint(STARTS[0], STARTS[-1] + 1, (len(images),), generator=draw)
    guided = torch.rand(len(images), generator=draw) < GUIDED
    # Those with as many steps and the same guidance are denoised together.
    chunks = [
        rows
        for first in STARTS
        for with_guidance in (False, True)
        for rows in ((start == first) & (guided == with_guidance)).nonzero().flatten().split(batch)
    ]
    output = torch.empty_like(images)
    nothing = _text_states(pipeline, [""])
    scaling = pipeline.vae.config.scaling_factor
    for rows in track(chunks, description="drawing pictures again"):
        latents = encode(pipeline.vae, images[rows]) * scaling
        noise, timesteps = torch.randn(latents.shape, generator=draw), scheduler.timesteps[start[rows[0]] :]
        latents = scheduler.add_noise(latents, noise, timesteps[:1].expand(len(rows)))
        states = _text_states(pipeline, [scenes[row].prompt for row in rows.tolist()])
        for timestep in timesteps:
            noise = pipeline.unet(latents.to(states.dtype), timestep, states).sample.float()
            if guided[rows[0]]:
                without = pipeline.unet(latents.to(states.dtype), timestep, nothing.expand_as(states)).sample.float()
                noise = without + GUIDANCE_SCALE * (noise - without)
            latents = scheduler.step(noise, timestep, latents).prev_sample
        decoded = pipeline.vae.decode((latents / scaling).to(states.dtype)).sample.float()
        output[rows] = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return output, scheduler.timesteps[start].float()


def _text_states(pipeline: StableDiffusionPipeline, prompts: list[str]) -> Tensor:
    options = {"padding": "max_length", "max_length": pipeline.tokenizer.model_max_length, "return_tensors": "pt"}
    return pipeline.text_encoder(input_ids=pipeline.tokenizer(prompts, **options).input_ids)[0]
