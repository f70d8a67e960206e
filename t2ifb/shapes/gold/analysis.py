"""Analysis of an image, independent of the prompt: its objects, its background, and how cleanly they are drawn."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t2ifb.shapes.gold.segmentation import (
    FAINT,
    GROUNDS,
    PALETTE,
    Array,
    Segment,
    Segmentation,
    position_on_lines,
    segment,
)
from t2ifb.shapes.grammar import BACKGROUNDS, COLORS, SHAPES
from t2ifb.shapes.renderer import AREA, SIZE, coverage

WHOLE_AREA, SPECK_AREA = 60.0, 12.0
"""Areas in pixels: objects of the first size count fully (the renderer's smallest has 107), of the second not."""

_Y, _X = np.mgrid[:SIZE, :SIZE].astype(np.float32) + 0.5
_SHAPES, _COLORS = np.array(SHAPES), np.array(list(COLORS))


def ramp(value: float | Array, worst: float, best: float) -> Array:
    """Grade linearly: 0 at `worst` and beyond, 1 at `best` and beyond (`worst` may be above `best`)."""
    return np.clip((np.asarray(value, np.float32) - worst) / (best - worst), 0, 1)


@dataclass(frozen=True)
class Found:
    """One object in an image.

    Attributes:
        mask: (64, 64) in [0, 1], soft.
        area: Area in pixels.
        x: Horizontal centroid in pixels.
        y: Vertical centroid in pixels, downwards.
        presence: Weight of the object in [0, 1]; small or faint objects count less.
        color_match: (6,) in [0, 1], in the order of `COLORS`.
        shape_iou: (4,) soft intersection over union with the template of each of `SHAPES`.
        shape_match: (4,) in [0, 1].
        edge_width: Mean width of the edge in pixels; 0 to 1 for an antialiased edge.
        impurity: Mean distance of the inner pixels to the palette colour.
    """

    mask: Array
    area: float
    x: float
    y: float
    presence: float
    color_match: Array
    shape_iou: Array
    shape_match: Array
    edge_width: float
    impurity: float

    @property
    def color(self) -> str:
        """The nearest palette colour."""
        return str(_COLORS[self.color_match.argmax()])

    @property
    def shape(self) -> str:
        """The best-matching shape."""
        return str(_SHAPES[self.shape_iou.argmax()])


@dataclass(frozen=True)
class Analysis:
    """Content of an image.

    Attributes:
        background: The palette background nearest to the image's own.
        background_match: Similarity of the background to each palette background, in [0, 1].
        things: Detected objects.
        edges: Sharpness of edges compared with rendered ones, in [0, 1]. This and the next two are 0 without objects.
        shapes: Match of the objects with any true shape, in [0, 1].
        colors: Purity of the objects' colours, in [0, 1].
        quiet: Uniformity of the background, in [0, 1].
    """

    background: str
    background_match: dict[str, float]
    things: tuple[Found, ...]
    edges: float
    shapes: float
    colors: float
    quiet: float

    @property
    def fidelity(self) -> float:
        """Product of edges, shapes, colors and quiet: a plain background does not compensate a broken shape."""
        return self.edges * self.shapes * self.colors * self.quiet


def analyse(image: NDArray[np.floating]) -> Analysis:
    """Detect the objects and the background of an image.

    Args:
        image: (64, 64, 3), RGB in [0, 1].

    Raises:
        ValueError: The image has another shape, an integer type, or non-finite values. Values outside [0, 1] are
            clipped.
    """
    if image.shape != (SIZE, SIZE, 3) or not np.issubdtype(image.dtype, np.floating) or not np.isfinite(image).all():
        raise ValueError(
            f"Expected a finite image of shape ({SIZE}, {SIZE}, 3) with RGB in [0, 1], got {image.dtype} of shape "
            f"{image.shape}{'' if np.isfinite(image).all() else ' with NaN or infinity'}. "
            "Resize it and divide bytes by 255."
        )
    pixels = np.clip(image, 0, 1).astype(np.float32)
    found = segment(pixels)
    things = tuple(_measure(pixels, one, found.ground) for one in found.segments)
    distance = np.linalg.norm(found.ground - GROUNDS, axis=1)
    match = ramp(distance, 0.5, 0.1)
    presence = np.array([thing.presence for thing in things])

    def mean(grades: list[float]) -> float:
        """Mean over objects, weighted by presence; 0 without objects."""
        return float(np.array(grades) @ presence) / max(1.0, float(presence.sum())) if things else 0.0

    return Analysis(
        background=list(BACKGROUNDS)[int(distance.argmin())],
        background_match=dict(zip(BACKGROUNDS, match.tolist(), strict=True)),
        things=things,
        edges=mean([float(ramp(thing.edge_width, 4.0, 1.1)) for thing in things]),
        shapes=mean([float(ramp(thing.shape_iou.max(), 0.6, 0.95)) for thing in things]),
        colors=mean([float(ramp(thing.impurity, 0.5, 0.03)) for thing in things]),
        quiet=_quiet(pixels, found, GROUNDS[distance.argmin()]),
    )


def _quiet(image: Array, found: Segmentation, ground: Array) -> float:
    """Grade the RMS deviation of the background from its palette colour, specks included."""
    if not found.empty.any():
        return 0.0
    return float(ramp(float(np.sqrt(np.mean((image[found.empty] - ground) ** 2))), 0.2, 0.01))


def _measure(image: Array, found: Segment, ground: Array) -> Found:
    mask = found.mask
    area = max(float(mask.sum()), 1e-6)
    x, y = float((mask * _X).sum()) / area, float((mask * _Y).sum()) / area
    iou = np.array(
        [_soft_iou(mask, coverage(shape, x, y, np.sqrt(area / AREA[shape]))) for shape in SHAPES], np.float32
    )
    distance = np.linalg.norm(found.color - PALETTE, axis=1)
    contrast = float((position_on_lines(found.color - ground, PALETTE - ground)).max())
    return Found(
        mask=mask,
        area=area,
        x=x,
        y=y,
        presence=float(ramp(area, SPECK_AREA, WHOLE_AREA) * ramp(contrast, FAINT, 2 * FAINT)),
        color_match=_against_others(-distance, 0.3) * ramp(distance, 0.6, 0.15),
        shape_iou=iou,
        shape_match=_against_others(iou, 0.06) * ramp(iou, 0.5, 0.8),
        edge_width=_edge_width(mask),
        impurity=float(np.linalg.norm(image[found.inner] - PALETTE[distance.argmin()], axis=1).mean()),
    )


def _against_others(values: Array, margin: float) -> Array:
    """Grade each value by its lead over the best other value: 0 at -margin, 1/2 at a tie, 1 at +margin."""
    highest, second = np.sort(values)[[-1, -2]]
    return ramp(values - np.where(values == highest, second, highest), -margin, margin)


def _soft_iou(a: Array, b: Array) -> float:
    """Soft intersection over union, sum of minima over sum of maxima."""
    return float(np.minimum(a, b).sum() / max(np.maximum(a, b).sum(), 1e-6))


def _edge_width(mask: Array) -> float:
    """Mean width in pixels of the zone between inside and outside, along the outline.

    The length of the outline is the mask's total variation, which blur does not change. Pixels that are nearly inside
    or nearly outside are noise and are not counted.
    """
    firm = np.clip((mask - 0.1) / 0.8, 0, 1)
    down, right = np.diff(mask[:, :-1], axis=0), np.diff(mask[:-1], axis=1)
    return float((4 * firm * (1 - firm)).sum() / max(float(np.hypot(down, right).sum()), 1.0))
