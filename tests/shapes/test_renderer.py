"""Where things stand and which pixels they cover."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2ifb.shapes.grammar import BACKGROUNDS, COLORS, SHAPES, scenes
from t2ifb.shapes.renderer import AREA, EXTENT, SIZE, Placed, coverage, layout, paint, related, render


@given(st.sampled_from(SHAPES), st.floats(22, 42), st.floats(22, 42), st.floats(7, 14))
def test_coverage_has_the_area_of_the_shape(shape: str, x: float, y: float, radius: float) -> None:
    covered = coverage(shape, x, y, radius)
    assert covered.min() >= 0
    assert covered.max() <= 1
    assert covered.sum() == pytest.approx(AREA[shape] * radius**2, rel=0.04)


@given(st.sampled_from(SHAPES), st.floats(7, 14))
def test_a_shape_stays_within_its_extent(shape: str, radius: float) -> None:
    covered = coverage(shape, 32, 32, radius)
    rows, columns = np.nonzero(covered)
    assert np.hypot(rows + 0.5 - 32, columns + 0.5 - 32).max() <= radius * EXTENT[shape] + 1.5


def test_shapes_are_mirror_symmetric() -> None:
    for shape in SHAPES:
        covered = coverage(shape, 32, 32, 10)
        np.testing.assert_allclose(covered, covered[:, ::-1], atol=1e-5)


@pytest.mark.parametrize("split", ["train", "compositional"])
def test_layouts_are_inside_apart_and_related_as_asked(split: str) -> None:
    rng = np.random.default_rng(0)
    for scene in scenes(split, 200, seed=1):
        placed = layout(scene, rng)
        assert [item.thing for item in placed] == list(scene.things)
        for item in placed:
            reach = item.radius * EXTENT[item.thing.shape]
            assert reach < item.x < SIZE - reach
            assert reach < item.y < SIZE - reach
        if scene.relation:
            assert related(scene.relation, placed[0], placed[1])
        total = sum(coverage(i.thing.shape, i.x, i.y, i.radius) for i in placed)
        assert np.max(total) <= 1 + 1e-6  # nothing overlaps


def test_colors_are_those_of_the_prompt() -> None:
    scene = scenes("test", 1, seed=2)[0]
    placed = layout(scene, np.random.default_rng(0))
    image = paint(placed, scene.background)
    np.testing.assert_allclose(image[0, 0], BACKGROUNDS[scene.background], atol=1e-6)
    for item in placed:
        np.testing.assert_allclose(image[int(item.y), int(item.x)], COLORS[item.thing.color], atol=1e-5)


def test_relations_exclude_each_other() -> None:
    thing = scenes("train", 1, seed=0)[0].things[0]
    upper, lower = Placed(thing, 30, 10, 8), Placed(thing, 32, 50, 8)
    assert related("above", upper, lower)
    assert related("below", lower, upper)
    assert not any(related(r, upper, lower) for r in ("below", "left of", "right of"))


def test_rendering_is_seeded() -> None:
    scene = scenes("train", 1, seed=0)[0]
    one, same, other = (render(scene, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
