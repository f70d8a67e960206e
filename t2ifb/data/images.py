"""Read image files into tensors."""

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t2ifb.data.rankings import Image, open_image

Pixels: TypeAlias = NDArray[np.uint8]
"""(H, W, 3), RGB."""
WAITING = 8
"""Maximum number of batches of decoded images, one per size, in memory."""
DECODERS = 4
"""Threads that decode ahead of the encoder. Pillow releases the GIL while it decodes."""


def load_image(image: Image) -> Tensor:
    """Read an image.

    Returns:
        (3, H, W), float32 in [0, 1], RGB.

    Raises:
        ValueError: The image is missing, empty or cannot be decoded.
    """
    return _to_pixels(_decode([image]))[0].float() / 255


def pixel_batches(images: Sequence[Image], batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
    """Decode images, with read-ahead, into batches of one size each.

    The images of each size form consecutive batches in order. Removing whole batches from the front therefore leaves
    the other batches unchanged, unless so many sizes occur that batches must be yielded before they are full.

    Args:
        images: The images.
        batch_size: Maximum number of images in a batch.

    Yields:
        Indices into `images`, and their pixels (B, 3, H, W), uint8.

    Raises:
        ValueError: An image cannot be read, and the message names it; or `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    waiting: dict[tuple[int, ...], list[tuple[int, Pixels]]] = defaultdict(list)
    for index, pixels in enumerate(_decoded(images, batch_size)):
        group = waiting[pixels.shape]
        group.append((index, pixels))
        if len(group) == batch_size:
            yield _stack(waiting.pop(pixels.shape))
        elif sum(map(len, waiting.values())) >= WAITING * batch_size:
            yield _stack(waiting.pop(next(iter(waiting))))  # the size that was added first
    for group in waiting.values():
        yield _stack(group)


def _stack(group: list[tuple[int, Pixels]]) -> tuple[list[int], Tensor]:
    return [index for index, _ in group], _to_pixels([pixels for _, pixels in group])


def _to_pixels(decoded: Sequence[Pixels]) -> Tensor:
    """Stack B arrays (H, W, 3) into (B, 3, H, W)."""
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous()


def _decoded(images: Sequence[Image], chunk: int) -> Iterator[Pixels]:
    """Decode images in order ahead of the consumer, one chunk per thread.

    A chunk has as many images as the consumer takes at once. Several threads on small images slow each other down, so
    they only run in parallel when decoding is the bottleneck.
    """
    pool = ThreadPoolExecutor(DECODERS)
    pending: deque[Future[list[Pixels]]] = deque()
    try:
        for start in range(0, len(images), chunk):
            pending.append(pool.submit(_decode, images[start : start + chunk]))
            if len(pending) > DECODERS:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode(images: Sequence[Image]) -> list[Pixels]:
    return [np.asarray(open_image(image)) for image in images]
