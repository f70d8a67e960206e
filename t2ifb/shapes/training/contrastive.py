"""Contrastive training of image and text towers on damaged pictures, captions and hard negatives."""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from t2ifb.shapes.grammar import Scene
from t2ifb.shapes.training import distortions, pictures
from t2ifb.shapes.training.auxiliary import SceneFacts, SceneReader
from t2ifb.shapes.training.captions import corrupt
from t2ifb.shapes.training.loop import fast_autocast, generator

SCENES_A_BATCH = 64
HARD_NEGATIVES = 2


class TwoTowers(Protocol):
    """Model to train: embeds images in [0, 1] and captions, L2-normalised, in one space."""

    reader: SceneReader

    def embed_images(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) of images (B, 3, 64, 64)."""

    def embed_captions(self, captions: list[str]) -> Tensor:
        """Embeddings (B, D) of texts."""

    def scale(self) -> Tensor:
        """Factor on cosines, a scalar."""


class CaptionedPictures:
    """Training data: every scene of a batch appears twice, damaged and redrawn by the base model.

    The loss is CLIP's (arXiv 2103.00020, figure 3) with hard negative captions for each image (NegCLIP, arXiv
    2210.01936), plus the `auxiliary` loss. Pairs whose captions do not contradict each other are excluded.
    """

    def __init__(self, folder: Path, seed: int, scenes: int) -> None:
        """Make the pictures of the scenes, or load them from `folder`."""
        self.seed, self.count = seed, scenes
        self.seen = pictures.make(folder, seed, scenes)
        self.facts = SceneFacts.of(self.seen.scenes, self.seen.layouts)
        self.prompts = [scene.prompt for scene in self.seen.scenes]

    def loss(self, towers: TwoTowers, step: int) -> Tensor:
        """Loss of a step. Batch and captions depend on the seed and the step alone."""
        draw, rng = generator(self.seed, 3, step), np.random.default_rng([self.seed, 3, step])
        picked = torch.randint(self.count, (SCENES_A_BATCH,), generator=draw).repeat(2)
        rows = picked + self.count * (torch.arange(len(picked)) >= SCENES_A_BATCH)
        phrases = [self.seen.damage.words(row, draw) for row in rows.tolist()]
        captions = [_join(self.prompts[i], phrase) for i, phrase in zip(picked.tolist(), phrases, strict=True)]
        wrong = [
            _nearly_right(self.seen.scenes[i], phrase, rng)
            for i, phrase in zip(picked.tolist(), phrases, strict=True)
            for _ in range(HARD_NEGATIVES)
        ]
        # On a CPU the backward pass of flash attention is several times slower than the plain form.
        with fast_autocast(), sdpa_kernel(SDPBackend.MATH):
            image_embeddings = towers.embed_images(self.seen.images[rows].float() / 255)
            text_embeddings = towers.embed_captions(captions + wrong)
        right, negatives = text_embeddings.float().split([len(captions), len(wrong)])
        image_embeddings = image_embeddings.float()
        scale = towers.scale().clamp(max=100)
        logits = scale * image_embeddings @ right.T
        logits = logits.masked_fill(_compatible([self.prompts[i] for i in picked.tolist()], phrases), -torch.inf)
        hard = scale * torch.einsum("bd,bnd->bn", image_embeddings, negatives.view(len(rows), HARD_NEGATIVES, -1))
        target = torch.arange(len(rows))
        by_image = F.cross_entropy(torch.cat([logits, hard], 1), target)
        contrastive = (by_image + F.cross_entropy(logits.T, target)) / 2
        read = towers.reader(image_embeddings, self.facts, picked, self.seen.damage.severity[rows])
        return contrastive + 0.5 * (read + towers.reader(right, self.facts, picked))


def _join(prompt: str, phrase: str) -> str:
    return f"{prompt}, {phrase}" if phrase else prompt


def _nearly_right(scene: Scene, phrase: str, rng: np.random.Generator) -> str:
    """A wrong caption: wrong content or, for a third of the captions about quality, wrong quality."""
    if phrase and rng.random() < 0.34:
        words = phrase.split(", ")
        index = int(rng.integers(len(words)))
        scale = next(levels for levels in distortions.QUALITY_WORDS.values() if words[index] in levels)
        words[index] = str(rng.choice([other for other in scale if other != words[index]]))
        return _join(scene.prompt, ", ".join(words))
    return _join(corrupt(scene, rng).prompt, phrase)


def _compatible(prompts: list[str], phrases: list[str]) -> Tensor:
    """Off-diagonal pairs without contradiction: the same prompt, and an equal or missing phrase."""
    same_prompt = np.array(prompts)[:, None] == np.array(prompts)[None]
    phrase = np.array(phrases)
    vague = (phrase[:, None] == phrase[None]) | (phrase[None] == "") | (phrase[:, None] == "")
    mask = torch.from_numpy(same_prompt & vague)
    return mask.fill_diagonal_(False)
