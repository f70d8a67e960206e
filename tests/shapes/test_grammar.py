"""The language of the shapes world."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2ifb.shapes.grammar import FAMILY_WEIGHTS, HELD_OUT, INVERSE, SPLITS, Scene, Thing, family_scenes, scenes


@cache
def every_scene() -> list[Scene]:
    return [scene for family in FAMILY_WEIGHTS for scene in family_scenes(family)]


def test_every_prompt_parses_back_to_its_scene() -> None:
    for scene in every_scene():
        assert Scene.parse(scene.prompt) == scene


def test_every_scene_knows_its_family() -> None:
    for family in FAMILY_WEIGHTS:
        assert {scene.family for scene in family_scenes(family)} == {family}


def test_prompts_are_distinct_and_number_thousands_in_training() -> None:
    assert len({scene.prompt for scene in every_scene()}) == len(every_scene())
    assert sum(scene.split == "train" for scene in every_scene()) > 5000


@given(st.deferred(lambda: st.sampled_from([scene for scene in every_scene() if scene.relation])))
def test_sentences_that_mean_the_same_share_a_split(scene: Scene) -> None:
    other = Scene(scene.things[::-1], scene.background, INVERSE[str(scene.relation)])
    assert other.prompt != scene.prompt
    assert other.split == scene.split


def test_held_out_combinations_are_in_the_compositional_split_only() -> None:
    for scene in every_scene():
        held_out = any((thing.color, thing.shape) in HELD_OUT for thing in scene.things)
        assert held_out == (scene.split == "compositional")


def test_draws_are_distinct_seeded_and_of_their_split() -> None:
    drawn = {split: scenes(split, 300, seed=5) for split in SPLITS}
    assert drawn["test"] == scenes("test", 300, seed=5)
    assert drawn["test"] != scenes("test", 300, seed=6)
    for split, some in drawn.items():
        assert {scene.split for scene in some} == {split}
        assert len({scene.prompt for scene in some}) == 300


def test_excluded_prompts_are_not_drawn() -> None:
    first = frozenset(scene.prompt for scene in scenes("test", 100, seed=0))
    assert first.isdisjoint(scene.prompt for scene in scenes("test", 100, seed=0, exclude=first))


def test_counted_things_are_named_once() -> None:
    red, blue = Thing("red", "circle"), Thing("blue", "square")
    assert Scene((red, red, blue), "gray").prompt == "two red circles and a blue square on a gray background"
    assert Scene((red, blue), "black", "left of").prompt == (
        "a red circle to the left of a blue square on a black background"
    )


@pytest.mark.parametrize(
    "prompt", ["", "a dog", "a red circles on a gray background", "two red circle on a gray background",
               "a red circle on a pink background", "three red circles and a blue square on a gray background"]
)  # fmt: skip
def test_other_sentences_are_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="not a prompt of the shapes domain"):
        Scene.parse(prompt)


def test_an_unknown_split_or_too_many_scenes_are_refused() -> None:
    with pytest.raises(ValueError, match="Unknown split 'dev'"):
        scenes("dev", 1, seed=0)
    with pytest.raises(ValueError, match="has only"):
        scenes("validation", 100_000, seed=0)
