"""Held-out metrics of the `shapes` models, and their model cards."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from open_clip import create_model, get_tokenizer
from rich.progress import track
from torch import Tensor, nn

from t2ifb.diffusion.path import eta_variance
from t2ifb.diffusion.sampling import Sampler, generate
from t2ifb.diffusion.schedule import ddim, flow
from t2ifb.shapes import weights
from t2ifb.shapes.annotators import TIE_WIDTH
from t2ifb.shapes.gold import GoldScore
from t2ifb.shapes.grammar import scenes
from t2ifb.shapes.training import distortions
from t2ifb.shapes.training.autoencoder import encode, psnr
from t2ifb.shapes.training.captions import corrupt
from t2ifb.shapes.training.encoder import normalised
from t2ifb.shapes.training.judges import Ranked
from t2ifb.shapes.training.loop import generator, rendered

CARD = """---
license: apache-2.0
tags: [t2ifb, shapes]
---
# {title}

{description}

Made from nothing by `make world` (`python -m t2ifb.shapes.training`), seed {seed}, on two CPU cores. Parameters:
{parameters:,}. {material}

Held-out figures:

| figure | value |
|---|---|
{rows}
"""

RENDERS = "Trained on `train` scenes of the shapes grammar only; no gold score was used."
ANNOTATORS = (
    "Trained on rankings or ratings of the simulated annotators for `train` prompts that the reward model's data set "
    "does not have; the figures are on `validation` prompts that it does not have either."
)

COMPARED = 4
"""Images per prompt whose order by a judge is compared with gold's."""
FLOW_SCALES = (1.0, 2.5, 4.0, 6.0)
FLOW_DESCRIPTION = """A `StableDiffusion3Pipeline` without T5: two CLIP text encoders, a transformer that predicts a
rectified flow, classifier-free guidance, 64 x 64 images. The autoencoder and the first text encoder are those of the
shapes text-to-image model. One vector of zeros stands for T5:

```python
pipeline = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
pipeline("a red circle on a gray background", num_inference_steps=20, guidance_scale=4.0, max_sequence_length=1)
```

The pipeline's scheduler adds no noise (Euler's method). `domain=shapes_flow` adds noise in each step; its images
are better."""


def write_card(
    folder: Path,
    title: str,
    description: str,
    parameters: int,
    figures: dict[str, float],
    seed: int,
    material: str = RENDERS,
) -> None:
    """Write `README.md` into a folder of weights."""
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in figures.items())
    text = CARD.format(
        title=title, description=description, parameters=parameters, rows=rows, seed=seed, material=material
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


@torch.no_grad()
def autoencoder_figures(model: AutoencoderKL, count: int = 300) -> dict[str, float]:
    """PSNR in dB and gold score of reconstructions of test scenes."""
    drawn, _, images = rendered("test", count, seed=1)
    output = torch.cat([model.decode(encode(model, chunk)).sample for chunk in images.split(100)])
    parts = GoldScore().parts((output / 2 + 0.5).clamp(0, 1), [scene.prompt for scene in drawn])
    names = ("gold", "alignment", "fidelity", "strict")
    return {"PSNR (dB)": psnr(model, images)} | {name: parts[name].float().mean().item() for name in names}


@torch.no_grad()
def clip_figures(folder: Path, count: int = 1000) -> dict[str, float]:
    """Retrieval among `count` test scenes, accuracy against hard negative captions, and correlation with quality."""
    model, tokenizer = create_model(f"local-dir:{folder}").eval(), get_tokenizer(f"local-dir:{folder}")
    drawn, _, images = rendered("test", count, seed=2)
    rng = np.random.default_rng(2)

    def of_images(pixels: Tensor) -> Tensor:
        return torch.cat([model.encode_image(normalised(part), normalize=True) for part in pixels.split(200)])

    def of_texts(texts: list[str]) -> Tensor:
        return model.encode_text(tokenizer(texts), normalize=True)

    pictures, texts = of_images(images.float() / 255), of_texts([scene.prompt for scene in drawn])
    wrong = of_texts([corrupt(scene, rng).prompt for scene in drawn])
    right_score = (pictures * texts).sum(1)
    draw = generator(2)
    damage = distortions.sample(count, draw)
    damaged = of_images(distortions.apply(images.float() / 255, damage, draw))
    words = distortions.QUALITY_WORDS["overall"]
    by_word = torch.stack(
        [(damaged * of_texts([f"{scene.prompt}, {word}" for scene in drawn])).sum(1) for word in words]
    )
    grade = (torch.softmax(100 * by_word, 0) * torch.arange(len(words))[:, None]).sum(0)
    return {
        f"captions retrieved among {count}": ((pictures @ texts.T).argmax(1) == torch.arange(count))
        .float()
        .mean()
        .item(),
        "right caption above a nearly right one": (right_score > (pictures * wrong).sum(1)).float().mean().item(),
        "correlation of its quality words with the damage": torch.corrcoef(torch.stack([grade, damage.overall]))[
            0, 1
        ].item(),
    }


@torch.no_grad()
def pipeline_figures(
    pipeline: Any, scales: tuple[float, ...] = (2.0, 4.0, 6.0), count: int = 100, steps: int = 20, **options: Any
) -> dict[str, float]:
    """Gold and its components on test prompts, by guidance scale.

    Args:
        pipeline: A base model of the world, of any class.
        scales: Guidance scales.
        count: Number of prompts.
        steps: Denoising steps.
        options: Further arguments of the pipeline.
    """

    def draw(prompts: Sequence[str], guidance: float) -> Tensor:
        images = []
        for start in range(0, count, 50):
            batch = prompts[start : start + 50]
            noise = torch.randn(len(batch), 4, 16, 16, generator=generator(3, start)).to(pipeline.dtype)
            output = pipeline(
                batch, num_inference_steps=steps, guidance_scale=guidance, latents=noise, output_type="np", **options
            )
            images.append(torch.from_numpy(output.images).permute(0, 3, 1, 2))
        return torch.cat(images)

    return _by_scale(draw, scales, count, f"{steps} steps")


def noisy_flow_figures(folder: Path, scales: tuple[float, ...], count: int = 400, steps: int = 20) -> dict[str, float]:
    """The same for the rectified flow in a folder, with as much noise in each step as the domain's sampler adds."""
    from t2ifb.diffusion.models.stable_diffusion_3 import StableDiffusion3Source

    model = StableDiffusion3Source(str(folder), max_sequence_length=weights.FLOW_T5_TOKENS).load()
    keys = [(3, number) for number in range(count)]

    def draw(prompts: Sequence[str], guidance: float) -> Tensor:
        sampler = Sampler(steps, guidance, partial(flow, variance=eta_variance))
        return torch.cat([*generate(model, sampler, prompts, keys)]).float() / 255

    return _by_scale(draw, scales, count, f"{steps} steps with noise")


def _by_scale(
    draw: Callable[[Sequence[str], float], Tensor], scales: Sequence[float], count: int, how: str
) -> dict[str, float]:
    """Gold and its parts of images (`count`, 3, 64, 64) in [0, 1] for test prompts, at each guidance scale."""
    prompts = [scene.prompt for scene in scenes("test", count, seed=3)]
    figures: dict[str, float] = {}
    for guidance in track(scales, description="judging samples"):
        parts = GoldScore().parts(draw(prompts, guidance), prompts)
        for name in ("gold", "alignment", "fidelity", "strict"):
            figures[f"{name} at guidance {guidance:g}, {how}"] = parts[name].float().mean().item()
    return figures


@torch.no_grad()
def judge_figures(scorer: nn.Module, ranked: Ranked) -> dict[str, float]:
    """Preference accuracy of a judge, and its correlation with the annotators' fidelity rating."""
    rows = torch.arange(len(ranked.prompts))
    scores = torch.cat(
        [scorer(ranked.images[some].float() / 255, [ranked.prompts[row] for row in some]) for some in rows.split(256)]
    )
    better, worse = ranked.pairs(rows)
    return {
        "preference accuracy": (scores[better] > scores[worse]).float().mean().item(),
        "correlation with the fidelity rating": torch.corrcoef(torch.stack([scores, ranked.fidelity]))[0, 1].item(),
    }


def full_images(count: int = 150, steps: int = 20, guidance_scale: float = 4.0) -> tuple[Tensor, list[str]]:
    """Images (4 `count`, 3, 64, 64) in [0, 1] of the base model for test prompts, as in evaluation, and the prompts."""
    from t2ifb.diffusion.models.stable_diffusion import StableDiffusionSource

    prompts = [scene.prompt for scene in scenes("test", count, seed=3) for _ in range(COMPARED)]
    keys = [(4, number) for number in range(len(prompts))]
    model = StableDiffusionSource(str(weights.PIPELINE)).load()
    sampler = Sampler(steps, guidance_scale, partial(ddim, eta=1.0))
    drawn = track(generate(model, sampler, prompts, keys, COMPARED), total=count, description="drawing full images")
    return torch.cat([*drawn]).float() / 255, prompts


@torch.no_grad()
def order_figures(scorer: nn.Module, images: Tensor, prompts: Sequence[str], gold: Tensor) -> dict[str, float]:
    """Share of pairs of full images of a prompt that a judge orders as gold does.

    Args:
        scorer: The judge.
        images: (4 P, 3, 64, 64) in [0, 1], four consecutive ones per prompt.
        prompts: 4 P prompts.
        gold: (4 P,). Pairs that annotators would call a tie are left out.
    """
    parts = zip(images.split(200), torch.arange(len(prompts)).split(200), strict=True)
    scores = torch.cat([scorer(some, [prompts[row] for row in rows]) for some, rows in parts])
    by_judge, by_gold = (values.view(-1, COMPARED, 1) - values.view(-1, 1, COMPARED) for values in (scores, gold))
    return {"pairs of full images in gold's order": (by_judge[by_gold > TIE_WIDTH] > 0).float().mean().item()}
