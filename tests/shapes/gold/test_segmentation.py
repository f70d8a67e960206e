"""One mask and one colour for each object, also where objects are near each other or soft."""

import numpy as np
import pytest
from scipy import ndimage

from t2ifb.shapes.gold import judge
from t2ifb.shapes.gold.segmentation import GROUNDS, PALETTE, RIM, position_on_lines, segment
from t2ifb.shapes.grammar import BACKGROUNDS, COLORS, Thing
from t2ifb.shapes.renderer import SIZE, Placed, paint
from tests.shapes.gold.parts import pictures


def test_equal_things_with_the_smallest_gap_are_two_things() -> None:
    thing = Thing("red", "circle")
    for angle in np.linspace(0, np.pi, 25):
        dx, dy = 10.51 * np.cos(angle), 10.51 * np.sin(angle)  # radii of 10 and a gap of just over one pixel
        image = paint([Placed(thing, 32 - dx, 32 - dy, 10), Placed(thing, 32 + dx, 32 + dy, 10)], "white")
        assert judge(image, "two red circles on a white background").gold >= 0.999


def test_touching_things_of_different_colors_are_two_things() -> None:
    placed = [Placed(Thing("red", "square"), 20, 32, 10), Placed(Thing("blue", "square"), 37, 32, 10)]
    verdict = judge(paint(placed, "gray"), "a red square to the left of a blue square on a gray background")
    assert verdict.strict
    assert verdict.alignment > 0.95


def test_a_position_on_a_line_is_the_share_of_its_end() -> None:
    axes = np.array([[1, 0, 0], [0, 2, 0]], np.float32)
    colors = np.array([[0.25, 1, 9], [-1, 0, 0]], np.float32)
    np.testing.assert_allclose(position_on_lines(colors, axes), [[0.25, 0.5], [-1, 0]])


def test_masks_lie_between_background_and_object_and_do_not_overlap() -> None:
    for scene, image in pictures()[:10]:
        found = segment(image)
        assert len(found.segments) == len(scene.things)
        np.testing.assert_allclose(found.ground, BACKGROUNDS[scene.background], atol=1e-3)
        masks = np.stack([one.mask for one in found.segments])
        assert masks.min() >= 0 and masks.max() <= 1
        assert ((masks > 0).sum(0) <= 1).all()
        assert not (masks.sum(0) * found.empty).any()
        for one in found.segments:
            assert np.linalg.norm(one.color - PALETTE, axis=1).min() < 1e-3
            assert one.mask[one.inner].min() > 0.9  # not 1 in the tips of a star
        axes = [one.color - found.ground for one in found.segments]
        again = found.ground + sum(one.mask[..., None] * axis for one, axis in zip(found.segments, axes, strict=True))
        assert np.abs(again - image).max() < 0.02  # the picture itself, from colours and masks


@pytest.mark.parametrize("index", range(len(GROUNDS)))
def test_a_plain_picture_has_no_objects(index: int) -> None:
    found = segment(np.broadcast_to(GROUNDS[index], (SIZE, SIZE, 3)))
    assert found.segments == ()
    assert found.empty.all()
    np.testing.assert_allclose(found.ground, GROUNDS[index])


def test_a_thin_bridge_does_not_join_two_objects_and_a_thick_one_does() -> None:
    placed = [Placed(Thing("red", "square"), 17, 32, 9), Placed(Thing("red", "square"), 47, 32, 9)]
    counts = []
    for width in (2, 12):
        image = paint(placed, "white")
        image[32 - width // 2 : 32 + width // 2, 17:47] = COLORS["red"]
        counts.append(len(segment(image).segments))
    assert counts == [2, 1]


def test_blur_reaches_no_further_than_the_rim() -> None:
    image = paint([Placed(Thing("blue", "circle"), 32, 32, 10)], "gray")
    (one,) = segment(ndimage.gaussian_filter(image, (2.0, 2.0, 0))).segments
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    assert np.hypot(y - 32, x - 32)[one.mask > 0].max() < 10 + RIM + 1
