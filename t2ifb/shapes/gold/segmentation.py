"""Segmentation of an image into objects with one colour and one soft mask each."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from t2ifb.shapes.grammar import BACKGROUNDS, COLORS

Array = NDArray[np.float32]

FAINT, HALF = 0.25, 0.5
"""Minimum contrast to the background, and minimum share of the object's contrast for a core pixel."""
RIM = 3
"""Maximum extent of an object beyond its core, in pixels (soft edges)."""

CRUMB = 0.25
"""Minimum area of a part behind a thin bridge, relative to the largest part, to count as a separate object."""

PALETTE: Array = np.array(list(COLORS.values()), np.float32)
GROUNDS: Array = np.array(list(BACKGROUNDS.values()), np.float32)

_CROSS = ndimage.generate_binary_structure(2, 1)
_CROSS_PER_COLOR = np.zeros((3, 3, 3), bool)  # neighbours within one colour's plane, none across planes
_CROSS_PER_COLOR[1] = _CROSS


@dataclass(frozen=True)
class Segment:
    """One segmented object.

    Attributes:
        color: RGB in [0, 1], the median of its core.
        mask: (64, 64) in [0, 1]: position of each pixel between background and `color`.
        inner: (64, 64) bool: pixels fully inside, away from soft edges.
    """

    color: Array
    mask: Array
    inner: NDArray[np.bool_]


@dataclass(frozen=True)
class Segmentation:
    """Background and objects.

    Attributes:
        ground: Actual RGB of the background.
        segments: The objects, in no particular order.
        empty: (64, 64) bool: pixels outside all objects and their rims.
    """

    ground: Array
    segments: tuple[Segment, ...]
    empty: NDArray[np.bool_]


def segment(image: Array) -> Segmentation:
    """Find the objects in an image (64, 64, 3), RGB in [0, 1].

    Each pixel is projected on the lines from the background to the palette colours, because antialiasing and blur mix
    along these lines. The nearest line gives its colour, the position on the line its contrast. Connected pixels of one
    colour with at least half of their object's contrast form a core. Cores joined by a thin bridge are separated, and
    anything thinner than a bridge is a speck, not an object.
    """
    ground = _ground(image)
    contrast = _contrast_per_color(image, ground)
    cores = _cores(contrast)
    labels = _label_once(cores)
    reach = _grow(labels)
    segments = []
    for number in range(1, int(labels.max()) + 1):
        core = labels == number
        color = np.median(image[core], axis=0)
        axis = color - ground
        along = (image - ground) @ axis / max(float(axis @ axis), 1e-6)
        mask = np.where(reach == number, np.clip(along, 0, 1), 0).astype(np.float32)
        inner = _erode(core)
        segments.append(Segment(color, mask, inner if inner.any() else core))
    return Segmentation(ground, tuple(segments), reach == 0)


def position_on_lines(colors: Array, axes: Array) -> Array:
    """Positions (..., n) of colours (..., 3) projected on lines from the origin to `axes` (n, 3); 1 at the end."""
    return np.asarray(colors @ (axes / np.maximum((axes**2).sum(1, keepdims=True), 1e-6)).T)


def _ground(image: Array) -> Array:
    """Median colour of the border, where objects are rare."""
    border = np.concatenate([image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3)])
    sides = np.concatenate([image[2:-2, :2].reshape(-1, 3), image[2:-2, -2:].reshape(-1, 3)])
    return np.median(np.concatenate([border, sides]), axis=0).astype(np.float32)


def _contrast_per_color(image: Array, ground: Array) -> Array:
    """Position on the nearest line background-colour (0 background, 1 colour), zero for the other colours.

    The line is chosen on the image smoothed over 3x3 pixels, so that noise does not change the colour between pixels.
    The position is that of the pixel itself, so that narrow gaps stay open.

    Returns:
        (6, 64, 64), at most 1.
    """
    axes = PALETTE - ground
    smooth = ndimage.uniform_filter(image, (3, 3, 1), mode="nearest") - ground
    position = np.clip(position_on_lines(smooth, axes), 0, 1)
    # |v - t a|^2 minus |v|^2, which is the same for all lines
    distance = position**2 * (axes**2).sum(1) - 2 * position * (smooth @ axes.T)
    nearest = distance.argmin(-1)
    contrast = np.clip(position_on_lines(image - ground, axes), 0, 1)
    return np.ascontiguousarray((contrast * (nearest[..., None] == np.arange(len(PALETTE)))).transpose(2, 0, 1))


def _cores(contrast: Array) -> NDArray[np.bool_]:
    """Pixels with at least half the contrast of their object, so that faded objects are found too."""
    faint, count = ndimage.label(contrast >= FAINT, _CROSS_PER_COLOR)
    level = np.full(count + 1, np.inf, np.float32)
    area = np.bincount(faint.ravel(), minlength=count + 1)
    for number in np.flatnonzero(area[1:] >= 13) + 1:  # 13 pixels: the smallest area that survives two erosions
        level[number] = HALF * np.percentile(contrast[faint == number], 75)
    cores = contrast >= level[faint]
    neighbours = sum(np.roll(cores, shift, axis).astype(np.int8) for shift in (1, -1) for axis in (1, 2))
    return np.asarray(cores | (neighbours >= 3))  # closes pinholes, not gaps


def _label_once(cores: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Number the cores (6, 64, 64) of all colours in one plane (64, 64), cut at thin bridges, without specks."""
    pieces, count = ndimage.label(cores, _CROSS_PER_COLOR)
    kept = np.zeros(cores.shape[1:], np.int32)
    for number in np.flatnonzero(np.bincount(pieces.ravel(), minlength=count + 1)[1:] >= 13) + 1:
        piece = (pieces == number).any(0)
        seeds, parts = _seeds(_erode(_erode(piece)))
        if parts > 1:
            nearest = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
            seeds = seeds[tuple(nearest)]
        elif parts == 1:
            seeds = np.ones_like(seeds)
        if parts:
            kept[piece] = seeds[piece] + kept.max()
    return kept


def _seeds(eroded: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Number the parts of an eroded piece, without the fragments left by the tips of a star."""
    parts, _ = ndimage.label(eroded, _CROSS)
    area = np.bincount(parts.ravel())
    area[0] = 0
    return ndimage.label(eroded & (area >= CRUMB * area.max())[parts], _CROSS)


def _erode(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Remove one pixel on all sides, also at the image border."""
    padded = np.pad(mask, 1)
    return np.asarray(mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:])


def _grow(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Assign each pixel within `RIM` of an object to the nearest object."""
    if not labels.any():
        return labels
    distance, nearest = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    return np.asarray(np.where(distance <= RIM, labels[tuple(nearest)], 0))
