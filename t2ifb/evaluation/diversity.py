"""Diversity of the images of one prompt."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import track

from t2ifb.data.encoder import Encoder
from t2ifb.data.images import load_image


def diversity(vectors: torch.Tensor) -> torch.Tensor:
    """Mean distance (1 - cosine) between the images of each prompt, (P,).

    Args:
        vectors: (P, K, D) embeddings of unit length, K at least 2.
    """
    count = vectors.shape[1]
    cosines = vectors @ vectors.transpose(1, 2)
    return 1 - (cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)) / (count * (count - 1))


def embed(encoder: Encoder, files: Sequence[Path], batch_size: int, device: torch.device) -> torch.Tensor:
    """(N, D) unit vectors of images on disk, by an encoder that takes (B, 3, H, W) in [0, 1]."""
    parts = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    with torch.inference_mode():
        pixels = (torch.stack([*map(load_image, part)]).to(device) for part in track(parts, "embedding images"))
        return torch.cat([encoder.encode_images(some).cpu() for some in pixels])
