"""The judge is exact on clean renders, graded on all others, and never confused about what was asked."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2ifb.shapes.gold import PARTS, Verdict, judge
from t2ifb.shapes.grammar import BACKGROUNDS, INVERSE, RELATIONS, SPLITS, Scene, Thing
from t2ifb.shapes.renderer import SIZE, Placed, layout, paint
from tests.shapes.gold.parts import (
    ASKED,
    DISTORTIONS,
    PLACED,
    Image,
    blur,
    fade,
    noise,
    pictures,
    some_scenes,
    warp,
)

GRADED = tuple(part for part in PARTS if part != "strict")


@pytest.mark.parametrize("split", SPLITS)
def test_clean_renders_are_exactly_right(split: str) -> None:
    for scene, image in some_scenes(75, split, seed=11):
        verdict = judge(image, scene.prompt)
        assert verdict.gold >= 0.999, (scene.prompt, verdict)
        assert verdict.strict, (scene.prompt, verdict)


@pytest.mark.slow
def test_thousands_of_clean_renders_are_exactly_right() -> None:
    verdicts = [judge(image, scene.prompt) for scene, image in some_scenes(4000, seed=12)]
    assert min(verdict.gold for verdict in verdicts) >= 0.999
    assert all(verdict.strict for verdict in verdicts)


def judged(placed: list[Placed], background: str = "gray", scene: Scene = ASKED) -> Verdict:
    return judge(paint(placed, background), scene.prompt)


def test_recoloring_one_thing_breaks_its_attribute_only() -> None:
    verdict = judged([replace(PLACED[0], thing=Thing("green", "circle")), PLACED[1]])
    assert verdict.attributes == pytest.approx(0.5)
    assert verdict.objects == verdict.count == verdict.fidelity == 1
    assert verdict.alignment < 0.6
    assert not verdict.strict


def test_swapping_the_colors_breaks_both_attributes() -> None:
    swapped = [replace(PLACED[0], thing=Thing("blue", "circle")), replace(PLACED[1], thing=Thing("red", "square"))]
    verdict = judged(swapped)
    assert verdict.attributes == verdict.alignment == 0
    assert verdict.objects == verdict.count == 1


@pytest.mark.parametrize("shape", ["square", "triangle", "star"])
def test_changing_a_shape_loses_the_object(shape: str) -> None:
    verdict = judged([replace(PLACED[0], thing=Thing("red", shape)), PLACED[1]])
    assert verdict.objects == verdict.attributes == pytest.approx(0.5)
    assert verdict.alignment < 0.6
    assert verdict.fidelity == 1
    assert not verdict.strict


def test_removing_or_adding_a_thing_lowers_count_and_alignment() -> None:
    pair = replace(ASKED, relation=None)
    less = judged(PLACED[:1], scene=pair)
    more = judged([*PLACED, Placed(Thing("yellow", "star"), 53, 24, 8)], scene=pair)
    assert less.count == pytest.approx(1 / 2)
    assert less.alignment == pytest.approx(2 / 3)  # F1 of one of two found and one of one right
    assert more.count == pytest.approx(2 / 3)
    assert more.alignment == pytest.approx(4 / 5)
    assert more.attributes == 1
    assert not less.strict
    assert not more.strict


def test_another_background_halves_alignment_at_the_most() -> None:
    verdict = judged(PLACED, "white")
    assert verdict.background == 0
    assert verdict.alignment == pytest.approx(0.5)
    assert verdict.fidelity == 1
    assert not verdict.strict


def test_an_empty_image_scores_low() -> None:
    for background in BACKGROUNDS:
        verdict = judged([], background, replace(ASKED, background=background))
        assert verdict.alignment == verdict.relation == verdict.count == 0
        assert verdict.fidelity <= 0.3
        assert not verdict.strict


@pytest.mark.parametrize("relation", RELATIONS)
def test_moving_a_thing_across_flips_the_relation(relation: str) -> None:
    scene = replace(ASKED, relation=relation)
    placed = layout(scene, np.random.default_rng(1))
    swapped = [replace(placed[0], x=placed[1].x, y=placed[1].y), replace(placed[1], x=placed[0].x, y=placed[0].y)]
    assert judged(placed, scene=scene).relation == 1
    assert judged(swapped, scene=scene).relation == pytest.approx(0, abs=1e-6)
    assert judged(swapped, scene=replace(scene, relation=INVERSE[relation])).relation == 1


def test_the_relation_is_graded_by_direction() -> None:
    grades = []
    for degrees in range(0, 181, 15):
        angle = np.radians(degrees)
        first = Placed(ASKED.things[0], 32 + 11 * np.sin(angle), 32 - 11 * np.cos(angle), 7)
        second = Placed(ASKED.things[1], 32 - 11 * np.sin(angle), 32 + 11 * np.cos(angle), 7)
        grades.append(judged([first, second]).relation)
    assert grades[0] == 1
    assert grades[-1] == 0
    assert max(a - b for a, b in pairwise(grades)) < 0.25  # no cliff
    assert all(a >= b - 1e-3 for a, b in pairwise(grades))


def test_two_missing_things_have_no_relation() -> None:
    others = [replace(item, thing=Thing("yellow", "star")) for item in PLACED]
    assert judged(others).relation == 0


def test_no_relation_is_judged_where_none_is_asked() -> None:
    assert judged(PLACED, scene=replace(ASKED, relation=None)).relation is None


@pytest.mark.parametrize("distortion", DISTORTIONS, ids=lambda function: function.__name__)
def test_a_growing_distortion_lowers_gold(distortion) -> None:  # type: ignore[no-untyped-def]
    gold = np.array(
        [
            [judge(distortion(i, image, level), scene.prompt).gold for level in DISTORTIONS[distortion]]
            for i, (scene, image) in enumerate(pictures()[:15])
        ]
    )
    mean = gold.mean(0)
    assert (np.diff(mean) < -0.005).all(), mean
    assert mean[1] < 0.99  # already a small one shows
    assert (np.diff(gold, axis=1) < 0.1).all()  # no single image gains much


@pytest.mark.parametrize(
    ("distortion", "limit"),
    [(blur, 3.0), (noise, 0.3), (warp, 4.0), (fade, 0.9)],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_no_part_falls_from_a_cliff(distortion, limit: float) -> None:  # type: ignore[no-untyped-def]
    """On the average over images, no part loses more than a third within a twentieth of the range."""
    levels = np.linspace(0, limit, 21)
    verdicts = [
        [judge(distortion(i, image, level), scene.prompt) for level in levels]
        for i, (scene, image) in enumerate(pictures()[:6])
    ]
    for part in ("objects", "attributes", "count", "alignment", "edges", "shapes", "colors", "quiet"):
        curve = np.array([[getattr(v, part) for v in row] for row in verdicts]).mean(0)
        assert np.diff(curve).min() > -1 / 3, (part, curve)


def test_mild_errors_of_a_decoder_cost_little() -> None:
    for i, (scene, image) in enumerate(pictures()):
        verdict = judge(noise(i, blur(i, image, 0.4), 0.015), scene.prompt)  # PSNR about 30
        assert verdict.alignment > 0.999
        assert verdict.fidelity > 0.9
        assert verdict.strict


def assert_sane(image: Image, prompt: str) -> None:
    verdict = judge(image, prompt)
    for part in GRADED:
        value = getattr(verdict, part)
        assert (part == "relation" and value is None) or 0 <= value <= 1 + 1e-6, (part, value)
    assert verdict.gold == pytest.approx((verdict.alignment + verdict.fidelity) / 2)


colors = st.tuples(*[st.floats(0, 1, width=32)] * 3)


@given(colors)
@settings(max_examples=50, deadline=None)
def test_constant_images_are_judged(color: tuple[float, float, float]) -> None:
    image = np.broadcast_to(np.float32(color), (SIZE, SIZE, 3))
    assert_sane(image, ASKED.prompt)
    assert judge(image, ASKED.prompt).alignment == 0


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4, 8, 16, 32]), st.booleans())
@settings(max_examples=80, deadline=None)
def test_random_images_are_judged(seed: int, cell: int, binary: bool) -> None:
    coarse = np.random.default_rng(seed).random((SIZE // cell, SIZE // cell, 3), dtype=np.float32)
    image = np.kron(coarse.round() if binary else coarse, np.ones((cell, cell, 1), np.float32))
    assert_sane(image, ASKED.prompt)


@given(colors, colors, st.integers(1, 12), st.integers(1, 12), st.integers(0, 63), st.integers(0, 63))
@settings(max_examples=80, deadline=None)
def test_small_blobs_are_judged(ground, color, height: int, width: int, y: int, x: int) -> None:  # type: ignore[no-untyped-def]
    image = np.full((SIZE, SIZE, 3), np.float32(ground))
    image[y : y + height, x : x + width] = color
    assert_sane(image, "three red stars on a black background")
