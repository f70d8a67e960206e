"""Comparison of an image's content with a prompt."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from t2ifb.shapes.gold.analysis import Analysis, Found, analyse, ramp
from t2ifb.shapes.gold.segmentation import Array
from t2ifb.shapes.grammar import COLORS, SHAPES, Scene, Thing

PARTS = (
    "objects", "attributes", "count", "relation", "background", "alignment",
    "edges", "shapes", "colors", "quiet", "fidelity", "gold", "strict",
)  # fmt: skip
"""The fields of `Verdict`, in order."""


@dataclass(frozen=True)
class Verdict:
    """Scores of one image for one prompt. Every component except `strict` is graded in [0, 1].

    Attributes:
        objects: Share of the requested shapes that are present, in any colour.
        attributes: Share of the requested objects that are present in their own colour.
        count: Whether the number of objects is right.
        relation: Whether the two objects are placed as requested; None if the prompt has no relation.
        background: Whether the background is the requested one.
        alignment: F1 of requested and detected objects, times (1 + relation) / 2, times (1 + background) / 2.
        edges: Sharpness of edges.
        shapes: Match with true shapes.
        colors: Purity of colours.
        quiet: Uniformity of the background.
        fidelity: Product of edges, shapes, colors and quiet.
        gold: Mean of alignment and fidelity.
        strict: Whether the image shows exactly what is requested.
    """

    objects: float
    attributes: float
    count: float
    relation: float | None
    background: float
    alignment: float
    edges: float
    shapes: float
    colors: float
    quiet: float
    fidelity: float
    gold: float
    strict: bool


def judge(image: NDArray[np.floating] | Analysis, prompt: str) -> Verdict:
    """Judge an image for a prompt.

    Args:
        image: (64, 64, 3), RGB in [0, 1]; or its `Analysis`, for reuse with several prompts.
        prompt: A sentence of the grammar.

    Raises:
        ValueError: The prompt is not in the grammar, or the image is not valid.
    """
    scene = Scene.parse(prompt)
    seen = image if isinstance(image, Analysis) else analyse(image)
    expected = len(scene.things)
    shape_match, match = _matches(scene.things, seen.things)
    pairs = linear_sum_assignment(-match)
    present = sum(thing.presence for thing in seen.things)
    relation = _relation(scene, seen.things, match, pairs) if scene.relation else None
    background = seen.background_match[scene.background]
    alignment = 2 * float(match[pairs].sum()) / (expected + present) * (1 + background) / 2
    if relation is not None:
        alignment *= (1 + relation) / 2
    return Verdict(
        objects=float(shape_match[linear_sum_assignment(-shape_match)].sum()) / expected,
        attributes=float(match[pairs].sum()) / expected,
        count=min(present, expected) / max(present, expected),
        relation=relation,
        background=background,
        alignment=alignment,
        edges=seen.edges,
        shapes=seen.shapes,
        colors=seen.colors,
        quiet=seen.quiet,
        fidelity=seen.fidelity,
        gold=(alignment + seen.fidelity) / 2,
        strict=_strict(scene, seen, relation),
    )


def _matches(asked: tuple[Thing, ...], found: tuple[Found, ...]) -> tuple[Array, Array]:
    """Match of each detected object with each requested shape, and with shape and colour: two (asked, found)."""
    shapes, colors = list(SHAPES), list(COLORS)
    shape = np.zeros((len(asked), len(found)), np.float32)
    both = np.zeros_like(shape)
    for i, thing in enumerate(asked):
        for j, candidate in enumerate(found):
            shape[i, j] = candidate.presence * candidate.shape_match[shapes.index(thing.shape)]
            both[i, j] = shape[i, j] * candidate.color_match[colors.index(thing.color)]
    return shape, both


def _relation(
    scene: Scene, found: tuple[Found, ...], match: Array, pairs: tuple[NDArray[np.intp], NDArray[np.intp]]
) -> float:
    """Grade the direction from the second object to the first, limited by their presence.

    1 up to 30 degrees from the requested direction (the renderer stays within 27), 0 from 120 degrees.
    """
    if len(found) < 2:
        return 0.0
    a, b = (found[j] for j in pairs[1])
    along, across = (b.y - a.y, b.x - a.x) if scene.relation in ("above", "below") else (b.x - a.x, b.y - a.y)
    along = along if scene.relation in ("above", "left of") else -along
    degrees = float(np.degrees(np.arctan2(abs(across), along)))
    apart = float(ramp(float(np.hypot(along, across)), 0, 8))  # pixels; coinciding objects have no direction
    return float(ramp(degrees, 120, 30)) * apart * float(match[pairs].min())


def _strict(scene: Scene, seen: Analysis, relation: float | None) -> bool:
    """Right objects, background and relation. An object counts if it is recognisable and mostly present."""
    things = sorted((thing.color, thing.shape) for thing in seen.things if thing.presence >= 0.5)
    recognised = all(
        thing.color_match.max() >= 0.5 and thing.shape_match.max() >= 0.5
        for thing in seen.things
        if thing.presence >= 0.5
    )
    asked = sorted((thing.color, thing.shape) for thing in scene.things)
    placed = relation is None or relation >= 0.9
    return recognised and things == asked and seen.background == scene.background and placed
