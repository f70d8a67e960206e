"""From images in [0, 1] to an encoder's input: one differentiable path for files, cache and training alike."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

VERSION = 1
"""Raised whenever the function below gives other numbers: embeddings made before are then not used any more."""


def check_counts(images: Tensor, prompts: Sequence[str]) -> None:
    """There are as many prompts as images.

    Raises:
        ValueError: Otherwise.
    """
    if len(images) != len(prompts):
        raise ValueError(f"expected a prompt for each image, got {len(images)} images and {len(prompts)} prompts")


def preprocess(images: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Antialiased bicubic resize of the short side, centre crop, clamp to [0, 1] (`square`), normalise.

    Args:
        images: (B, 3, H, W) floating point, in [0, 1], RGB.
        size: Side of the encoder's square input, in pixels.
        mean: 3 numbers, in units of [0, 1].
        std: 3 numbers, in units of [0, 1].

    Returns:
        (B, 3, size, size), of the images' type.

    Raises:
        ValueError: The images have another shape or are whole numbers.
    """
    images = square(images, size)
    shift, scale = (torch.tensor(values, dtype=images.dtype, device=images.device) for values in (mean, std))
    return (images - shift[:, None, None]) / scale[:, None, None]


def square(images: Tensor, size: int) -> Tensor:
    """Antialiased bicubic resize of the short side, clamp to [0, 1], centre crop.

    The originals resize 8-bit images with Pillow and round the result. Here the numbers stay floats, so that gradients
    flow. On random noise, the worst case, the two differ by less than 1.5 of 255 levels anywhere and by a
    third of a level on the mean (measured in `tests/scorers/test_preprocess.py`). An image whose short side is `size`
    already is not resampled, only cropped. The gradient is zero where the bicubic filter overshoots [0, 1].

    Args:
        images: (B, 3, H, W) floating point, in [0, 1], RGB.
        size: Side of the square, in pixels.

    Returns:
        (B, 3, size, size), of the images' type.

    Raises:
        ValueError: The images have another shape or are whole numbers.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"expected images (B, 3, H, W) as floating point numbers in [0, 1], got {tuple(images.shape)} "
            f"{images.dtype}; divide 8-bit images by 255, and add a batch dimension to a single image"
        )
    height, width = images.shape[2:]
    short = min(height, width)
    if short != size:
        height, width = size * height // short, size * width // short
        # In single precision: a half-precision filter is off by more than a level. Width first and a clamp after each
        # direction, as Pillow does it: a single clamp at the end differs by up to 20 levels when little is shrunk.
        resized = images.float()
        for shape in ((images.shape[2], width), (height, width)):
            resized = interpolate(resized, shape, mode="bicubic", antialias=True).clamp(0, 1)
        images = resized.to(images.dtype)
    # Round half to even, as torchvision's CenterCrop does.
    top, left = round((height - size) / 2), round((width - size) / 2)
    return images[:, :, top : top + size, left : left + size]
