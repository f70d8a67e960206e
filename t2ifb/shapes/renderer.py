"""Renderer of scenes: layout and pixel coverage of objects."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t2ifb.shapes.grammar import BACKGROUNDS, COLORS, Scene, Thing

SIZE = 64
"""Height and width of an image in pixels."""

# Outer and inner vertex radius in units of the radius, and number of outer vertices.
POLYGONS = {"square": (1.20, 1.20 * np.cos(np.pi / 4), 4), "triangle": (1.30, 0.65, 3), "star": (1.30, 0.65, 5)}
AREA = {"circle": np.pi} | {
    shape: vertices * outer * inner * np.sin(np.pi / vertices) for shape, (outer, inner, vertices) in POLYGONS.items()
}
"""Area of each shape at radius one."""
EXTENT = {"circle": 1.0} | {shape: outer for shape, (outer, _, _) in POLYGONS.items()}
"""Radius of the circle around each shape at radius one."""
TURN = {"square": np.pi / 4, "triangle": -np.pi / 2, "star": -np.pi / 2}
"""Direction of the first vertex; the y axis points down, so -pi/2 is up."""

_Y, _X = np.mgrid[:SIZE, :SIZE].astype(np.float32) + 0.5


@dataclass(frozen=True)
class Placed:
    """A placed object: centre (x, y) and radius in pixels, origin at the upper left corner."""

    thing: Thing
    x: float
    y: float
    radius: float


def coverage(shape: str, x: float, y: float, radius: float) -> NDArray[np.float32]:
    """Coverage of each pixel by a shape, antialiased over one pixel.

    A polygon with dihedral symmetry (a star, or a regular polygon as a star whose inner vertices lie on the edges)
    folds onto one half-edge, so its border is a single line.

    Returns:
        Array (64, 64) in [0, 1].
    """
    dx, dy = _X - np.float32(x), _Y - np.float32(y)
    distance = np.hypot(dx, dy)
    if shape == "circle":
        return np.clip(radius - distance + 0.5, 0, 1)
    outer, inner, vertices = POLYGONS[shape]
    wedge = np.pi / vertices
    angle = np.abs((np.arctan2(dy, dx) - np.float32(TURN[shape]) + wedge) % (2 * wedge) - wedge)
    tip, notch = np.array([outer, 0.0]), inner * np.array([np.cos(wedge), np.sin(wedge)])
    normal = np.array([notch[1] - tip[1], tip[0] - notch[0]])
    normal /= np.hypot(*normal)
    outside = distance * (normal[0] * np.cos(angle) + normal[1] * np.sin(angle)) - radius * float(normal @ tip)
    return np.clip(0.5 - outside, 0, 1).astype(np.float32)


def layout(scene: Scene, rng: np.random.Generator) -> list[Placed]:
    """Place the objects of a scene inside the image, without overlap and with the requested relation."""
    largest = {1: 14.0, 2: 12.0, 3: 9.5}[len(scene.things)]
    smallest = {1: 9.0, 2: 8.0, 3: 7.0}[len(scene.things)]
    for attempt in range(10_000):
        largest_now = max(smallest, largest * 0.998**attempt)  # crowded scenes shrink a little
        placed = []
        for thing in scene.things:
            radius = rng.uniform(smallest, largest_now)
            margin = radius * EXTENT[thing.shape] + 1
            x, y = rng.uniform(margin, SIZE - margin, size=2)
            placed.append(Placed(thing, x, y, radius))
        if _apart(placed) and (scene.relation is None or related(scene.relation, placed[0], placed[1])):
            return placed
    raise AssertionError(f"no layout found for {scene}")


def _apart(placed: list[Placed]) -> bool:
    return all(
        np.hypot(a.x - b.x, a.y - b.y) > a.radius * EXTENT[a.thing.shape] + b.radius * EXTENT[b.thing.shape] + 1
        for i, a in enumerate(placed)
        for b in placed[:i]
    )


def related(relation: str, a: Placed, b: Placed) -> bool:
    """Whether a is clearly placed as the relation says, relative to b: the other axis differs by less than half."""
    along, across = (b.y - a.y, b.x - a.x) if relation in ("above", "below") else (b.x - a.x, b.y - a.y)
    return bool((along if relation in ("above", "left of") else -along) > 2 * abs(across))


def paint(placed: list[Placed], background: str) -> NDArray[np.float32]:
    """Draw placed objects on a background.

    Returns:
        Image (64, 64, 3), RGB in [0, 1].
    """
    image = np.broadcast_to(np.array(BACKGROUNDS[background], np.float32), (SIZE, SIZE, 3)).copy()
    for item in placed:
        alpha = coverage(item.thing.shape, item.x, item.y, item.radius)[..., None]
        image += alpha * (np.array(COLORS[item.thing.color], np.float32) - image)
    return image


def render(scene: Scene, rng: np.random.Generator) -> NDArray[np.float32]:
    """Render a scene with a random layout: image (64, 64, 3), RGB in [0, 1]."""
    return paint(layout(scene, rng), scene.background)
