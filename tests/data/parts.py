import hashlib
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize

from t2ifb.data.rankings import PreferenceDataset, RankedPrompt


class PooledPixels:
    """A real, tiny encoder: pooled pixels and hashed texts, projected and normalised."""

    image_size = 8
    embedding_dim = 6

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(12, self.embedding_dim, generator=generator)

    def encode_images(self, images: Tensor) -> Tensor:
        return normalize(adaptive_avg_pool2d(images, 2).flatten(1) @ self.weight, dim=-1)

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        digests = [list(hashlib.sha256(prompt.encode()).digest()[:12]) for prompt in prompts]
        return normalize((torch.tensor(digests).float() - 127) @ self.weight, dim=-1)


@dataclass
class PooledPixelsSource:
    seed: int = 0
    loads: int = 0

    def fingerprint(self) -> str:
        return f"pooled-pixels-{self.seed}"

    def load(self) -> PooledPixels:
        self.loads += 1
        return PooledPixels(self.seed)


def picture(seed: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    """A random picture, (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


@dataclass
class FolderDataset:
    """A preference data set of random pictures in a folder."""

    splits: dict[str, list[RankedPrompt]]

    def available(self, split: str) -> bool:
        return split in self.splits

    def rankings(self, split: str) -> list[RankedPrompt]:
        return self.splits[split]


def make_split(folder: Path, split: str, ranks: list[tuple[int, ...]]) -> list[RankedPrompt]:
    """A split with one ranking per tuple of ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    rankings = []
    for number, row in enumerate(ranks):
        paths = []
        for index in range(len(row)):
            path = folder / f"{split}-{number}-{index}.png"
            picture(zlib.crc32(path.name.encode())).save(path)
            paths.append(path)
        rankings.append(RankedPrompt(f"{split}-{number}", f"prompt {number % 7} of {split}", tuple(paths), row))
    return rankings


RANKS = [(1, 2, 3, 4), (1, 1, 2, 3, 2), (2, 1), (1, 1, 1), (3, 1, 2, 4, 5, 5, 1, 6), (1, 2, 2), (4, 3, 2, 1), (1, 2)]


def encoded_picture(seed: int, form: str = "JPEG") -> bytes:
    """The file of a random picture."""
    buffer = io.BytesIO()
    picture(seed).save(buffer, form)
    return buffer.getvalue()


def two_steps(dataset: PreferenceDataset, folder: Path) -> dict[str, Any]:
    """Train a small head on a data set for two steps, in a folder, with a real encoder; gives the summary."""
    from tests.training.worlds import make_training, run_training  # takes seconds

    training = make_training(folder, dataset=dataset, epochs=2, batch_size=10_000, baselines={})
    return run_training(training, folder / "run")
