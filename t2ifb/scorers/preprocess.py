"""Differentiable preprocessing of images in [0, 1], the same for files, cache and training."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

VERSION = 2
"""Version of `preprocess`, increased when its output changes. Older cached embeddings are then not reused."""


def check_counts(images: Tensor, prompts: Sequence[str]) -> None:
    """Check that there is one prompt per image.

    Raises:
        ValueError: The numbers differ.
    """
    if len(images) != len(prompts):
        raise ValueError(f"expected a prompt for each image, got {len(images)} images and {len(prompts)} prompts")


Crop = Literal["torchvision", "transformers"]


def preprocess(
    images: Tensor, size: int, mean: Sequence[float], std: Sequence[float], crop: Crop = "torchvision"
) -> Tensor:
    """Antialiased bicubic resize of the short side, centre crop, clamp to [0, 1] (`square`), normalise.

    Args:
        images: (B, 3, H, W) floating point, in [0, 1], RGB.
        size: Side of the encoder's square input, in pixels.
        mean: 3 numbers, in units of [0, 1].
        std: 3 numbers, in units of [0, 1].
        crop: Where the crop of an odd rest begins, see `square`.

    Returns:
        (B, 3, size, size), in the images' dtype.

    Raises:
        ValueError: The images have another shape or an integer type.
    """
    images = square(images, size, crop)
    make = _channels if type(images) is Tensor else _channels.__wrapped__
    shift, scale = (make(tuple(values), images.dtype, images.device) for values in (mean, std))
    return (images - shift) / scale


def square(images: Tensor, size: int, crop: Crop = "torchvision") -> Tensor:
    """Antialiased bicubic resize of the short side, clamp to [0, 1], centre crop.

    The originals resize 8-bit images with Pillow and round the result. Here values stay floating point, so that
    gradients flow. On random noise, the worst case, the two differ by less than 1.5 of 255 levels everywhere and by a
    third of a level on average (measured in `tests/scorers/test_preprocess.py`). An image whose short side is already
    `size` is only cropped. The gradient is zero where the bicubic filter overshoots [0, 1].

    Args:
        images: (B, 3, H, W) floating point, in [0, 1], RGB.
        size: Side of the square, in pixels.
        crop: Where the crop begins if an odd number of pixels is left over: `torchvision` rounds half to even, as its
            `CenterCrop`, and `transformers` down, as its image processors.

    Returns:
        (B, 3, size, size), in the images' dtype.

    Raises:
        ValueError: The images have another shape or an integer type.
    """
    _check(images)
    height, width = images.shape[2:]
    short = min(height, width)
    if short != size:
        height, width = size * height // short, size * width // short
    begin = round if crop == "torchvision" else math.floor
    top, left = begin((height - size) / 2), begin((width - size) / 2)
    return resize(images, (height, width), (top, left, size, size))


def resize(images: Tensor, shape: tuple[int, int], crop: tuple[int, int, int, int] | None = None) -> Tensor:
    """Antialiased bicubic resize, clamped to [0, 1], computed only inside a window.

    Two matrix products, one per direction, with the filter of Pillow and of
    `interpolate(mode="bicubic", antialias=True)`. Unlike that function it is deterministic on a GPU, and pixels outside
    the window cost nothing: for a very long image only the centre crop is computed.

    Args:
        images: (B, 3, H, W) floating point, in [0, 1], RGB.
        shape: Height and width of the whole resized image, in pixels.
        crop: Top, left, height and width of the window; the whole image by default.

    Returns:
        (B, 3, height, width) of the window, in the images' dtype. Images of that shape are only cropped.

    Raises:
        ValueError: The images have another shape or an integer type.
    """
    _check(images)
    top, left, height, width = crop or (0, 0, *shape)
    rows, columns = images.shape[2:]
    if (rows, columns) == shape:
        return images[:, :, top : top + height, left : left + width]
    # In single precision: a half-precision filter is off by more than one level. Width first and a clamp after each
    # direction, as in Pillow: a single clamp at the end differs by up to 20 levels at scales near 1.
    first, last = _taps(rows, shape[0], top, top + height)
    with _single_precision(images.device):
        resized = images[:, :, first:last].float()
        resized = _resample(resized, -1, (columns, shape[1], left, left + width)).clamp(0, 1)
        resized = _resample(resized, -2, (rows, shape[0], top, top + height), first).clamp(0, 1)
    return resized.to(images.dtype)


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"expected images (B, 3, H, W) as floating point numbers in [0, 1], got {tuple(images.shape)} "
            f"{images.dtype}; divide 8-bit images by 255, and add a batch dimension to a single image"
        )


BLOCK = 16
"""Pixels that a CPU computes in one matrix product. A filter uses few input pixels, so one product for all of them
would mostly multiply by zero. On a GPU one large product is faster than many small ones."""


def _resample(images: Tensor, dim: int, side: tuple[int, int, int, int], offset: int = 0) -> Tensor:
    """Resize in one direction.

    Args:
        images: (B, 3, H, W), float32.
        dim: -1 for the width, -2 for the height.
        side: Length before and after, and the first and the last + 1 output pixel to compute.
        offset: Index of the first input pixel in `images`.
    """
    before, after, start, stop = side
    block = BLOCK if images.device.type == "cpu" else stop - start
    make = _weights if type(images) is Tensor else _weights.__wrapped__  # do not cache fake tensors
    ranges, matrices = [], []
    for begin in range(start, stop, block):
        end = min(begin + block, stop)
        first, last = _taps(before, after, begin, end)
        ranges.append((first - offset, last - offset))
        matrices.append(make(before, after, begin, end, images.device))
    resampled: Tensor = _Banded.apply(images, dim, ranges, matrices)
    return resampled


class _Banded(Function):
    """Products of matrices (n, m) with ranges of m pixels, concatenated.

    The gradient is accumulated in place. Plain autograd would allocate a zero image for every range.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, dim: int, ranges: list[tuple[int, int]], matrices: list[Tensor]) -> Tensor:
        ctx.shape, ctx.dim, ctx.ranges, ctx.matrices = images.shape, dim, ranges, matrices
        parts = [images.narrow(dim, first, last - first) for first, last in ranges]
        if dim == -1:
            return torch.cat([part @ matrix.T for part, matrix in zip(parts, matrices, strict=True)], -1)
        return torch.cat([matrix @ part for part, matrix in zip(parts, matrices, strict=True)], -2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total = gradients[0].new_zeros(ctx.shape)
        parts = gradients[0].split([len(matrix) for matrix in ctx.matrices], ctx.dim)
        with _single_precision(total.device):
            for part, matrix, (first, last) in zip(parts, ctx.matrices, ctx.ranges, strict=True):
                product = part @ matrix if ctx.dim == -1 else matrix.T @ part
                total.narrow(ctx.dim, first, last - first).add_(product)
        return total, None, None, None


def _single_precision(device: torch.device) -> AbstractContextManager[object]:
    """Disable autocast, except on `meta`, which does not support it."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _taps(before: int, after: int, start: int, stop: int) -> tuple[int, int]:
    """First and last + 1 input pixel used by the output pixels `start` to `stop` - 1."""
    scale = before / after
    reach = 2 * max(scale, 1)
    first, last = int(scale * (start + 0.5) - reach + 0.5), int(scale * (stop - 0.5) + reach + 0.5)
    return max(first, 0), min(last, before)


@lru_cache(maxsize=256)
def _weights(before: int, after: int, start: int, stop: int, device: torch.device) -> Tensor:
    """(stop - start, m) weights of the m input pixels of `_taps`; Keys' cubic, a = -1/2, widened for downscaling."""
    scale = before / after
    centers = scale * (np.arange(start, stop) + 0.5)
    pixels = np.arange(*_taps(before, after, start, stop)) + 0.5
    x = np.abs(pixels - centers[:, None]) / max(scale, 1)
    weights = np.where(x < 1, (1.5 * x - 2.5) * x**2 + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))
    with torch.inference_mode(False):  # cached, and may be used with gradients later
        return torch.tensor(weights / weights.sum(1, keepdims=True), dtype=torch.float32, device=device)


@lru_cache(maxsize=64)
def _channels(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Per-channel values as (3, 1, 1), copied to the device once."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)[:, None, None]
