"""Pixels and tokens instead of cached embeddings, for an encoder that is trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t2ifb.data.embeddings import FillReport, cut_prompts
from t2ifb.data.images import pixel_batches
from t2ifb.data.rankings import Image

DECODED = 16
"""Images that a thread decodes per task."""


class PixelEncoder(Protocol):
    """Interface of encoders for the feed."""

    image_size: int

    def square(self, images: Tensor) -> Tensor:
        """Resize and crop images (B, 3, H, W) in [0, 1] to (B, 3, image_size, image_size)."""
        ...

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Token ids (B, L) of B texts."""
        ...


@dataclass(frozen=True)
class Pixels:
    """N images that are read when gathered.

    Attributes:
        images: The images.
        encoder: Encoder that defines the image size.
    """

    images: Sequence[Image]
    encoder: PixelEncoder

    def __len__(self) -> int:
        return len(self.images)

    def gather(self, index: NDArray[np.int64] | slice = slice(None)) -> Tensor:
        """Pixels (n, 3, S, S) of the selected images, float32 in [0, 1]. Repeated images are decoded once.

        Raises:
            ValueError: An image cannot be read.
        """
        wanted, place = np.unique(np.arange(len(self))[index], return_inverse=True)
        pixels = torch.empty(len(wanted), 3, self.encoder.image_size, self.encoder.image_size)
        for numbers, decoded in pixel_batches([self.images[number] for number in wanted], DECODED):
            pixels[numbers] = self.encoder.square(decoded.float() / 255)
        return pixels[torch.from_numpy(place)]


@dataclass(frozen=True)
class Tokens:
    """Token ids of N texts.

    Attributes:
        ids: (N, L) int64.
    """

    ids: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def gather(self, index: NDArray[np.int64] | slice = slice(None)) -> Tensor:
        """Token ids (n, L) of the selected texts."""
        return self.ids[index]


class PixelFeatures:
    """Feed of pixels and tokens, the counterpart of `EmbeddingCache`.

    Attributes:
        embeddings_of: None, since the features are not embeddings.
    """

    embeddings_of = None

    def __init__(self, encoder: PixelEncoder) -> None:
        """Store the encoder that will use the features."""
        self.encoder = encoder

    def fill(self, images: Sequence[Image], prompts: Sequence[str]) -> FillReport:
        """Compute nothing in advance. Report the truncated prompts."""
        return FillReport(0, 0, 0.0, tuple(cut_prompts(self.encoder, prompts)))

    def images(self, images: Sequence[Image], prompts: Sequence[str] = ()) -> Pixels:
        """Pixels of N images, in order."""
        return Pixels(images, self.encoder)

    def prompts(self, prompts: Sequence[str]) -> Tokens:
        """Token ids of N texts, in order."""
        return Tokens(self.encoder.tokenize(list(prompts)))
