"""Objects, background and cleanness of an image are measured, independent of the prompt."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2ifb.shapes.gold import analyse, judge
from t2ifb.shapes.gold.analysis import WHOLE_AREA, ramp
from t2ifb.shapes.grammar import BACKGROUNDS, COLORS, SHAPES, Thing
from t2ifb.shapes.renderer import AREA, SIZE, Placed, paint
from tests.shapes.gold.parts import ASKED, PLACED, Image, blur, fade, noise, pictures, warp


@given(st.sampled_from(SHAPES), st.sampled_from(list(COLORS)), st.sampled_from(list(BACKGROUNDS)), st.data())
@settings(max_examples=60, deadline=None)
def test_a_single_thing_is_found_where_it_stands(shape: str, color: str, background: str, data: st.DataObject) -> None:
    radius = data.draw(st.floats(7, 14))
    x, y = (data.draw(st.floats(20, 44)) for _ in "xy")
    (found,) = analyse(paint([Placed(Thing(color, shape), x, y, radius)], background)).things
    assert (found.color, found.shape) == (color, shape)
    assert found.x == pytest.approx(x, abs=0.1)
    assert found.y == pytest.approx(y, abs=0.1)


def test_a_distortion_touches_the_part_it_is_about() -> None:
    def parts(distortion, level: float) -> dict[str, float]:  # type: ignore[no-untyped-def]
        verdicts = [judge(distortion(i, image, level), scene.prompt) for i, (scene, image) in enumerate(pictures())]
        return {p: float(np.mean([getattr(v, p) for v in verdicts])) for p in ("edges", "shapes", "colors", "quiet")}

    assert parts(blur, 1.0)["edges"] < 0.9
    assert parts(noise, 0.06)["quiet"] < 0.9
    assert parts(warp, 1.5)["shapes"] < 0.8
    assert parts(warp, 1.5)["quiet"] > 0.99
    assert parts(fade, 0.4)["colors"] < 0.75
    assert parts(fade, 0.4)["edges"] > 0.99


def test_specks_are_no_things_but_no_quiet_either() -> None:
    image = paint(PLACED, "gray")
    image[30:33, 4:7] = COLORS["yellow"]
    verdict = judge(image, ASKED.prompt)
    assert verdict.strict
    assert verdict.alignment == 1
    assert verdict.quiet < 0.95


@pytest.mark.parametrize(
    "image",
    [np.zeros((32, 32, 3), np.float32), np.full((SIZE, SIZE, 3), np.nan), np.zeros((SIZE, SIZE, 3), np.uint8)],
    ids=["size", "nan", "bytes"],
)
def test_what_is_no_image_of_this_world_is_refused(image: Image) -> None:
    with pytest.raises(ValueError, match=r"Expected a finite image of shape \(64, 64, 3\)"):
        judge(image, ASKED.prompt)


def test_a_grade_is_linear_between_worst_and_best() -> None:
    assert ramp(np.array([-1, 2, 3, 4, 9]), 2, 4).tolist() == [0, 0, 0.5, 1, 1]
    assert ramp(np.array([-1, 2, 3, 4, 9]), 4, 2).tolist() == [1, 1, 0.5, 0, 0]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_area_is_that_of_the_shape(shape: str) -> None:
    for radius in (8.0, 11.0, 14.0):
        (found,) = analyse(paint([Placed(Thing("red", shape), 32, 32, radius)], "white")).things
        assert found.area == pytest.approx(AREA[shape] * radius**2, rel=0.02)
        assert found.presence == 1


def test_an_object_fades_away_as_it_shrinks() -> None:
    presence = []
    for radius in (1.0, 2.6, 3.4, 4.2, 6.0):
        things = analyse(paint([Placed(Thing("red", "circle"), 32, 32, radius)], "white")).things
        presence.append(sum(thing.presence for thing in things))
    assert presence == sorted(presence)
    assert (presence[0], presence[-1]) == (0, 1)
    assert any(0 < each < 1 for each in presence)
    assert np.pi * 6.0**2 > WHOLE_AREA


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_the_background_is_matched_with_each_of_the_palette(background: str) -> None:
    seen = analyse(paint([], background))
    assert seen.background == background
    assert seen.background_match[background] == 1
    assert all(match < 1 for other, match in seen.background_match.items() if other != background)
    assert seen.things == () and seen.edges == seen.shapes == seen.colors == seen.fidelity == 0
    assert seen.quiet == 1


def test_fidelity_is_the_product_of_its_parts() -> None:
    for index, (_, image) in enumerate(pictures()[:5]):
        seen = analyse(blur(index, image, 1.0))
        assert seen.fidelity == pytest.approx(seen.edges * seen.shapes * seen.colors * seen.quiet)
        assert 0 < seen.fidelity < 1
