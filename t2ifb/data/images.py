"""From image files to tensors."""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor

from t2ifb.data.rankings import Image, open_image

DECODERS = 4
"""Threads that decode ahead of the encoder; Pillow lets go of the interpreter's lock while it decodes."""


def to_pixels(picture: PILImage.Image) -> Tensor:
    """Pixels of a decoded image.

    Returns:
        (3, H, W), uint8, RGB.
    """
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()


def load_image(image: Image) -> Tensor:
    """Read an image.

    Returns:
        (3, H, W), float32 in [0, 1], RGB.

    Raises:
        ValueError: It is missing, empty or cannot be decoded.
    """
    return to_pixels(open_image(image)).float() / 255


def pixel_batches(images: Sequence[Image], batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
    """Decode images, some ahead, into batches of one size each.

    The images of each size form consecutive batches in their order, so that taking whole batches away from the front
    leaves the other batches as they were.

    Args:
        images: The images.
        batch_size: Largest number of images in a batch.

    Yields:
        Indices into `images`, and their pixels (B, 3, H, W), uint8.

    Raises:
        ValueError: An image cannot be read; the message names it.
    """
    waiting: dict[torch.Size, list[tuple[int, Tensor]]] = defaultdict(list)
    for index, pixels in enumerate(_decoded(images, ahead=2 * batch_size)):
        group = waiting[pixels.shape]
        group.append((index, pixels))
        if len(group) == batch_size:
            yield _stack(waiting.pop(pixels.shape))
    for group in waiting.values():
        yield _stack(group)


def _stack(group: list[tuple[int, Tensor]]) -> tuple[list[int], Tensor]:
    return [index for index, _ in group], torch.stack([pixels for _, pixels in group])


def _decoded(images: Iterable[Image], ahead: int) -> Iterator[Tensor]:
    """Pixels in order, decoded by threads that are at most `ahead` images in front."""
    pool = ThreadPoolExecutor(DECODERS)
    pending: deque[Future[Tensor]] = deque()
    try:
        for image in images:
            pending.append(pool.submit(_pixels, image))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pixels(image: Image) -> Tensor:
    return to_pixels(open_image(image))
