"""Test sets for reward models: the annotators' comparisons, and damaged images ordered by gold.

The damage resembles errors of an over-optimised generator.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from t2ifb.data.batches import ComparisonIndex
from t2ifb.data.embeddings import Encoder
from t2ifb.data.images import load_image
from t2ifb.data.rankings import RankedPrompt
from t2ifb.evaluation.metrics import PreferenceResult, evaluate_preference, ordered_pairs
from t2ifb.reward_learning.results import MARGIN
from t2ifb.scorers import RewardModel
from t2ifb.scorers.clip import CLIPEncoder
from t2ifb.shapes.gold import GoldScore

BATCH = 256


@dataclass(frozen=True)
class Comparisons:
    """Images and comparisons.

    Attributes:
        pixels: (N, 3, 64, 64) in [0, 1].
        prompts: N texts.
        better: (C,), index of the better image.
        worse: (C,), index of the worse image.
        prompt: (C,), index of the prompt's text; intervals are over texts.
    """

    pixels: Tensor
    prompts: list[str]
    better: NDArray[np.int64]
    worse: NDArray[np.int64]
    prompt: NDArray[np.int64]

    def judge(self, scores: ArrayLike) -> PreferenceResult:
        """Preference accuracy of scores (N,)."""
        return evaluate_preference(scores, self.better, self.worse, self.prompt)

    def embed(self, encoder: Encoder) -> tuple[Tensor, Tensor]:
        """Embeddings (N, D) of the images and of their prompts."""
        texts = sorted(set(self.prompts))
        with torch.inference_mode():
            images = torch.cat([encoder.encode_images(part) for part in self.pixels.split(BATCH)])
            prompts = encoder.encode_prompts(texts)[[texts.index(prompt) for prompt in self.prompts]]
        return images, prompts


class Jury:
    """Evaluates models on several sets of comparisons. A frozen encoder embeds each set once for all models."""

    def __init__(self, sets: Mapping[str, Comparisons]) -> None:
        """Store the sets by name."""
        self.sets = sets
        self._seen: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}

    def judge(self, model: RewardModel) -> dict[str, PreferenceResult]:
        """Preference accuracy of a model, by set."""
        with torch.inference_mode():
            return {name: each.judge(model.head(*self._embed(model, name)).numpy()) for name, each in self.sets.items()}

    def _embed(self, model: RewardModel, name: str) -> tuple[Tensor, Tensor]:
        encoder = model.encoder
        assert isinstance(encoder, CLIPEncoder)
        if encoder.source.trainable_layers:
            return self.sets[name].embed(encoder)
        key = name, encoder.source.fingerprint()
        if key not in self._seen:
            self._seen[key] = self.sets[name].embed(encoder)
        return self._seen[key]


def by_annotators(rankings: Sequence[RankedPrompt]) -> Comparisons:
    """Comparisons of rankings without changes."""
    index = ComparisonIndex.build(rankings)
    pixels = torch.stack([load_image(image) for ranking in rankings for image in ranking.images])
    prompts = [ranking.prompt for ranking in rankings for _ in ranking.images]
    texts = index.text_of_prompt[index.prompt_of_comparison]
    return Comparisons(pixels, prompts, index.better, index.worse, texts)


def distorted(images: Tensor, draw: torch.Generator) -> Tensor:
    """Warp images by a smooth random field with a standard deviation of up to about four pixels."""
    count, _, height, width = images.shape
    coarse = torch.randn(count, 2, 6, 6, generator=draw)
    field = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").permute(0, 2, 3, 1)
    strength = torch.rand(count, 1, 1, 1, generator=draw) * 2 * 4 / width  # the grid is 2 wide
    identity = torch.nn.functional.affine_grid(torch.eye(2, 3).expand(count, 2, 3), list(images.shape), False)
    return torch.nn.functional.grid_sample(
        images, identity + strength * field, padding_mode="border", align_corners=False
    )


def over_saturated(images: Tensor, draw: torch.Generator) -> Tensor:
    """Raise saturation and contrast up to fourfold, as rewards for vivid pictures do."""
    factors = 1 + 3 * torch.rand(len(images), generator=draw)
    raised = [
        F.adjust_contrast(F.adjust_saturation(i, float(f)), float(f)) for i, f in zip(images, factors, strict=True)
    ]
    return torch.stack(raised)


def merged(images: Tensor, draw: torch.Generator) -> Tensor:
    """Blend with another image of the same prompt, shifted by up to ten pixels, so that objects merge."""
    moves = torch.randint(-10, 11, (len(images), 2), generator=draw).tolist()
    others = torch.stack([torch.roll(i, move, (1, 2)) for i, move in zip(images.roll(1, 0), moves, strict=True)])
    share = 0.5 * torch.rand(len(images), 1, 1, 1, generator=draw)
    return images + share * (others - images)


KINDS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "distorted": distorted,
    "over-saturated": over_saturated,
    "merged": merged,
}


def by_gold(rankings: Sequence[RankedPrompt], kind: str, seed: int = 0) -> Comparisons:
    """Damage a copy of every image and order a ranking's images and copies by gold.

    In each comparison at least one image is damaged, and gold differs by more than `MARGIN`.

    Args:
        rankings: Rankings of the `shapes` domain.
        kind: One of `KINDS`.
        seed: Seed of the damage.
    """
    draw = torch.Generator().manual_seed(seed)
    pixels, prompts, numbers, is_damaged = [], [], [], []
    for number, ranking in enumerate(rankings):
        images = torch.stack([load_image(image) for image in ranking.images])
        pixels += [images, KINDS[kind](images, draw)]
        prompts += [ranking.prompt] * 2 * len(images)
        numbers += [number] * 2 * len(images)
        is_damaged += [False] * len(images) + [True] * len(images)
    shown = torch.cat(pixels)
    gold = score(GoldScore(), shown, prompts)
    better, worse, ranking_of = ordered_pairs(gold, numbers, MARGIN)
    chosen = np.array(is_damaged)[better] | np.array(is_damaged)[worse]
    text = ComparisonIndex.build(rankings).text_of_prompt[ranking_of]
    return Comparisons(shown, prompts, better[chosen], worse[chosen], text[chosen])


def score(scorer: Callable[[Tensor, list[str]], Tensor], pixels: Tensor, prompts: list[str]) -> NDArray[np.float64]:
    """Scores (N,) of images (N, 3, H, W) for N prompts."""
    with torch.inference_mode():
        parts = [
            scorer(pixels[start : start + BATCH], prompts[start : start + BATCH]).cpu()
            for start in range(0, len(prompts), BATCH)
        ]
    return torch.cat(parts).double().numpy()
