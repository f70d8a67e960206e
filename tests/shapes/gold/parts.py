"""Clean pictures of the shapes world, and distortions of them that grow."""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from t2ifb.shapes.grammar import Scene, Thing, scenes
from t2ifb.shapes.renderer import SIZE, Placed, render

Image = NDArray[np.float32]

_Y, _X = np.mgrid[:SIZE, :SIZE].astype(np.float64)


def some_scenes(count: int, split: str = "train", seed: int = 3) -> list[tuple[Scene, Image]]:
    rng = np.random.default_rng(seed)
    return [(scene, render(scene, rng)) for scene in scenes(split, count, seed)]


@cache
def pictures() -> list[tuple[Scene, Image]]:
    return some_scenes(30)


@cache
def others() -> list[Image]:
    return [image for _, image in some_scenes(30, "test", seed=4)]


_RNG = np.random.default_rng(0)
NOISE = _RNG.standard_normal((30, SIZE, SIZE, 3))
FIELDS = ndimage.gaussian_filter(_RNG.standard_normal((30, 2, SIZE, SIZE)), (0, 0, 5, 5))
FIELDS /= FIELDS.std((2, 3), keepdims=True)

ASKED = Scene((Thing("red", "circle"), Thing("blue", "square")), "gray", "above")


PLACED = [Placed(ASKED.things[0], 30, 15, 10), Placed(ASKED.things[1], 34, 46, 10)]


def blur(index: int, image: Image, sigma: float) -> Image:
    return ndimage.gaussian_filter(image, (sigma, sigma, 0))


def noise(index: int, image: Image, deviation: float) -> Image:
    return np.clip(image + deviation * NOISE[index], 0, 1)


def warp(index: int, image: Image, pixels: float) -> Image:
    at = [_Y + pixels * FIELDS[index, 0], _X + pixels * FIELDS[index, 1]]
    return np.stack([ndimage.map_coordinates(image[..., c], at, order=1, mode="nearest") for c in range(3)], -1)


def fade(index: int, image: Image, share: float) -> Image:
    return image + share * (image.mean(-1, keepdims=True) - image)


def blend(index: int, image: Image, share: float) -> Image:
    return image + share * (others()[index] - image)


def erase(index: int, image: Image, share: float) -> Image:
    """Take every thing's left part away, up to the `share` of its width."""
    result = image.copy()
    things, _ = ndimage.label(np.abs(image - image[0, 0]).max(-1) > 0.02)
    for _rows, columns in ndimage.find_objects(things):
        end = columns.start + round(share * (columns.stop - columns.start))
        result[:, columns.start : end] = image[0, 0]
    return result


DISTORTIONS = {
    blur: (0, 0.7, 1.2, 2.0, 3.0),
    noise: (0, 0.03, 0.08, 0.15, 0.25),
    warp: (0, 1.0, 2.0, 3.0, 4.0),
    fade: (0, 0.2, 0.4, 0.6, 0.8),
    blend: (0, 0.1, 0.2, 0.3, 0.5),
    erase: (0, 0.15, 0.3, 0.6, 1.0),
}
