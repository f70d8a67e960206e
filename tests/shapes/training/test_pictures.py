"""Pictures that the base model draws again, and how far they are from the renders they began as."""

import pytest
import torch

from t2ifb.shapes.training.distortions import ASPECTS, Damage, apply
from t2ifb.shapes.training.loop import Renders, generator, rendered
from t2ifb.shapes.training.pictures import measure, redraw
from t2ifb.shapes.weights import load_pipeline


@pytest.fixture(scope="module")
def renders() -> Renders:
    return rendered("train", 12, seed=0)


def test_a_picture_does_not_depart_from_itself(renders: Renders) -> None:
    assert not measure(renders.images, renders.images).any()


@pytest.mark.parametrize("aspect", ["shapes", "surface"])
def test_damage_is_found_where_it_was_done(renders: Renders, aspect: str) -> None:
    column, found = ASPECTS.index(aspect), []
    for amount in (0.3, 0.9):
        severity = torch.zeros(len(renders.images), len(ASPECTS))
        severity[:, column] = amount
        images = apply(renders.images.float() / 255, Damage(severity), generator(0))
        found.append(measure(renders.images, (images * 255).round().to(torch.uint8)).mean(0))
    assert found[0].argmax() == column
    assert found[1][column] > found[0][column] + 0.1


def test_drawing_again_repeats_itself_and_keeps_something_of_the_render(renders: Renders) -> None:
    pipeline = load_pipeline(torch.float32)
    one, again = (redraw(pipeline, renders.scenes, renders.images, seed=1) for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, renders.images)
    shapes = ASPECTS.index("shapes")
    to_its_own = measure(renders.images, one)[:, shapes].mean()
    to_another = measure(renders.images.roll(1, 0), one)[:, shapes].mean()
    assert to_its_own < to_another
