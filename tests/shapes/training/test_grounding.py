import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from t2ifb.shapes.grammar import HELD_OUT, SHAPES, Scene, scenes
from t2ifb.shapes.renderer import SIZE, Placed, layout, related
from t2ifb.shapes.training import grounding
from t2ifb.shapes.training.grounding import Groups, Picture, Readers, agreement, arranged, edited, mistakes, ordered
from t2ifb.shapes.training.judges import Words, untrained_blip

SCENE = Scene.parse("a red circle above a blue square on a gray background")
RED, BLUE = SCENE.things


def picture(*objects: Placed, background: str = "gray") -> Picture:
    return Picture(list(objects), background)


def test_batches_depend_on_the_step_alone() -> None:
    first, again, other = (Groups(0, 20).batch(step, 1) for step in (3, 3, 4))
    assert torch.equal(first.images, again.images)
    assert first.questions.prompts == again.questions.prompts
    assert not torch.equal(first.images, other.images)


def test_every_picture_is_asked_about_with_both_prompts_of_its_group() -> None:
    batch = Groups(0, 20).batch(0, 2)
    assert batch.images.shape == (2 * grounding.PICTURES, 3, SIZE, SIZE)
    asked = list(zip(batch.questions.prompts, batch.questions.picture.tolist(), strict=True))
    assert len(set(asked)) == len(asked) == 2 * len(batch.images)
    for start in range(0, len(asked), grounding.PICTURES):
        assert len({prompt for prompt, _ in asked[start : start + grounding.PICTURES]}) == 1


def test_nouns_are_at_their_tokens() -> None:
    asked = Groups(0, 20).batch(0, 3).questions
    words = Words()
    ids, _ = words(asked.prompts)
    found = {words.words[ids[question, position]].removesuffix("s") for question, position, _ in asked.nouns.tolist()}
    assert found <= set(SHAPES)
    assert asked.nouns[:, 2].max() <= grounding.MOST


@given(st.integers(0, 10_000))
def test_edits_stay_within_the_training_split(seed: int) -> None:
    rng = np.random.default_rng(seed)
    things = scenes("train", 10, seed=0)[seed % 10].things
    for _ in range(3):
        before, things = things, edited(things, rng)
        assert sorted(things) != sorted(before)
        assert 1 <= len(things) <= grounding.MOST
        assert not HELD_OUT & {(thing.color, thing.shape) for thing in things}


@given(st.integers(0, 10_000))
def test_arranged_objects_are_inside_and_related(seed: int) -> None:
    placed = arranged(SCENE.things, np.random.default_rng(seed), "above")
    assert related("above", *placed)
    assert all(item.radius < item.x < SIZE - item.radius for item in placed)


def test_a_render_of_a_scene_agrees_with_it() -> None:
    rng = np.random.default_rng(0)
    for scene in scenes("train", 30, seed=0):
        shown = Picture(layout(scene, rng), scene.background)
        assert agreement(scene, shown)[:6] == [1] * 6
        assert agreement(scene, shown)[6] > 0.9
        assert mistakes(scene, shown) < 0.15


@pytest.mark.parametrize(
    ("shown", "expected", "number"),
    [
        (picture(Placed(RED, 32, 16, 8)), [0.5, 1, 0.5, 0.5, 0.5, 1, 0], 1 + 1.5),
        (picture(Placed(RED, 32, 48, 8), Placed(BLUE, 32, 16, 8)), [1, 1, 1, 1, 1, 1, 0], 1.5),
        (picture(Placed(RED, 16, 32, 8), Placed(BLUE, 48, 32, 8)), [1, 1, 1, 1, 1, 1, 0.5], 0.75),
        (
            picture(Placed(RED, 32, 16, 8), Placed(BLUE, 32, 48, 8), Placed(BLUE, 10, 10, 8), background="white"),
            [1, 2 / 3, 1, 1, 2 / 3, 0, 1],
            2,
        ),
    ],
)
def test_mistakes_are_counted(shown: Picture, expected: list[float], number: float) -> None:
    assert agreement(SCENE, shown)[:6] == pytest.approx(expected[:6])
    if len(shown.objects) < 3:
        assert agreement(SCENE, shown)[6] == pytest.approx(expected[6])
        assert mistakes(SCENE, shown) == pytest.approx(number)
    else:
        assert mistakes(SCENE, shown) == pytest.approx(number, abs=0.3)


def test_patches_show_the_objects() -> None:
    some = grounding.patches([picture(Placed(RED, 20, 44, 10))])
    objects = some.shape[0] < len(SHAPES)
    assert objects.view(grounding.GRID, grounding.GRID).nonzero().tolist() == [
        [y, x] for y in (4, 5, 6) for x in (1, 2, 3)
    ]
    assert some.centre.nonzero().tolist() == [[0, 5 * grounding.GRID + 2]]
    centre = some.offset.view(1, grounding.GRID, grounding.GRID, 2)[0, 5, 2] * 2 * grounding.PATCH
    assert centre.tolist() == [0, 0]  # patch (5, 2) has its centre at (20, 44)
    assert set(some.color[0, objects].tolist()) == {0}


def test_only_certain_comparisons_are_made() -> None:
    better = ordered(torch.tensor([[0.0, 1.0, 1.0, 0.0]]), torch.tensor([[0.5, 0.5, 0.0, 0.0]]))[0]
    assert better.nonzero().tolist() == [[0, 1], [2, 1], [3, 0], [3, 1], [3, 2]]


def test_a_few_steps_reduce_the_loss() -> None:
    torch.manual_seed(0)
    words = Words()
    blip, head = untrained_blip(len(words.words)), torch.nn.Linear(128, 1)
    readers = Readers(128, 128)
    batch = Groups(0, 20).batch(0, 1)
    parameters = [*blip.parameters(), *head.parameters(), *readers.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    losses = []
    for _ in range(8):
        loss = grounding.loss(blip, head, readers, words(batch.questions.prompts), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
