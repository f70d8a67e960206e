"""Gold as a scorer: one number per image, its parts, and what it refuses."""

import pytest
import torch

from t2ifb.shapes.gold import PARTS, GoldScore
from t2ifb.shapes.renderer import SIZE
from tests.shapes.gold.parts import ASKED, blur, pictures


def test_the_scorer_gives_the_gold_of_each_image() -> None:
    images = torch.stack([torch.from_numpy(blur(i, image, i / 3)) for i, (_, image) in enumerate(pictures()[:6])])
    images = images.permute(0, 3, 1, 2).requires_grad_()
    prompts = [scene.prompt for scene, _ in pictures()[:6]]
    scorer = GoldScore()
    gold = scorer(images, prompts)
    assert gold.shape == (6,)
    assert gold.dtype == torch.float32
    assert not gold.requires_grad
    parts = scorer.parts(images, prompts)
    assert tuple(parts) == PARTS
    torch.testing.assert_close(parts["gold"], gold)
    for (scene, _), relation in zip(pictures()[:6], parts["relation"], strict=True):
        assert torch.isnan(relation).item() == (scene.relation is None)


def test_the_scorer_wants_one_prompt_per_image() -> None:
    with pytest.raises(ValueError, match="one prompt per image"):
        GoldScore()(torch.zeros(2, 3, SIZE, SIZE), [ASKED.prompt])


def test_a_part_is_scored_alone() -> None:
    image = torch.from_numpy(blur(0, pictures()[0][1], 1.0)).permute(2, 0, 1)[None]
    prompts = [pictures()[0][0].prompt]
    parts = GoldScore().parts(image, prompts)
    for part in ("alignment", "edges", "strict"):
        torch.testing.assert_close(GoldScore(part)(image, prompts), parts[part])
    assert float(parts["edges"]) < float(parts["alignment"])
    with pytest.raises(ValueError, match="no component 'beauty'; expected one of objects, attributes"):
        GoldScore("beauty")


def test_prompts_outside_the_grammar_are_listed_once() -> None:
    assert GoldScore.unknown([ASKED.prompt, "a cat", "a dog", "a cat"]) == ["a cat", "a dog"]
    assert GoldScore.unknown([ASKED.prompt]) == []


@pytest.mark.parametrize("shape", [(3, SIZE, SIZE), (1, 1, SIZE, SIZE)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Expected images \(B, 3, 64, 64\)"):
        GoldScore()(torch.zeros(shape), [ASKED.prompt] * shape[0])
