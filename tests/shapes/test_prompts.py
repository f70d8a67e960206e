"""Prompts of the shapes world for tuning and judging."""

import pytest

from t2ifb.shapes.annotators import PROMPTS
from t2ifb.shapes.grammar import Scene, scenes
from t2ifb.shapes.prompts import ScenePrompts


def test_fresh_prompts_of_shapes_are_none_of_the_ranked_ones() -> None:
    ranked = {scene.prompt for split in ("validation", "test") for scene in scenes(split, PROMPTS[split], 0)}
    fresh = [*ScenePrompts("validation", 128).prompts(), *ScenePrompts("test", 400).prompts()]
    assert len(set(fresh)) == 528
    assert not ranked & set(fresh)
    assert ScenePrompts("test", 5).prompts() == ScenePrompts("test", 5).prompts()


@pytest.mark.parametrize("split", ["train", "validation", "test", "compositional"])
def test_prompts_are_distinct_sentences_of_their_split(split: str) -> None:
    found = ScenePrompts(split, 50).prompts()
    assert len(set(found)) == 50
    assert {Scene.parse(prompt).split for prompt in found} == {split}
    assert ScenePrompts(split, 50, seed=1).prompts() != found


def test_training_may_use_the_prompts_that_were_ranked() -> None:
    ranked = {scene.prompt for scene in scenes("train", PROMPTS["train"], 0)}
    assert ranked & set(ScenePrompts("train", 500, seed=1).prompts())


def test_more_prompts_than_there_are_and_another_split_are_refused() -> None:
    with pytest.raises(ValueError, match="has only .* scenes, not 1000000"):
        ScenePrompts("test", 10**6).prompts()
    with pytest.raises(ValueError, match="Unknown split 'tset'"):
        ScenePrompts("tset", 1).prompts()
