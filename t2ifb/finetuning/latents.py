"""Latents of given images, in the form that the cache of embeddings takes."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2ifb.diffusion.model import ModelSource, TextToImageModel
from t2ifb.scorers.preprocess import VERSION, resize
from t2ifb.utils.fingerprints import FileHashes, fingerprint, library_versions


class LatentEncoder:
    """Encodes images of any size to a model's latents: an `EncoderSource` for the images of an `EmbeddingCache`.

    Images are resized until they cover the model's size, and centre-cropped to it.
    """

    def __init__(self, model: TextToImageModel, source: ModelSource, hashes: Path) -> None:
        """Store the model.

        Args:
            model: The model. Images are encoded on the device that it has then.
            source: Description that it was built from.
            hashes: File that stores the hashes of the model's files.
        """
        self.model = model
        self._source: Any = replace(source, device="cpu", gradient_checkpointing=False)
        self._hashes = hashes

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of the model's images, in pixels."""
        with torch.no_grad():
            pixels = self.model.decode(torch.zeros(1, *self.model.latent_shape, device=self.model.device))
        return pixels.shape[2], pixels.shape[3]

    @cached_property
    def _fingerprint(self) -> str:
        known = "latents", VERSION, self.size, self._source, type(self.model), LatentEncoder, library_versions()
        return fingerprint(*known, hash_file=FileHashes(self._hashes))

    def fingerprint(self) -> str:
        """Identifier of everything that the latents depend on besides the images."""
        return self._fingerprint

    def load(self) -> Any:
        """The encoder itself, which encodes images only."""
        return self

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents (B, C · h · w) float32 of images (B, 3, H, W) in [0, 1]."""
        with torch.no_grad():
            return self.model.encode_images(fitted(images.to(self.model.device), *self.size)).flatten(1)


def fitted(images: Tensor, height: int, width: int) -> Tensor:
    """Images (B, 3, H, W) in [0, 1], resized until they cover the given size and centre-cropped to it."""
    rows, columns = images.shape[2:]
    scale = max(height / rows, width / columns)
    shape = max(height, round(rows * scale)), max(width, round(columns * scale))
    return resize(images, shape, ((shape[0] - height) // 2, (shape[1] - width) // 2, height, width))
