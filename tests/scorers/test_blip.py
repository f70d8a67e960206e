"""BLIP's towers and tokenizer in both of its scorers."""

from pathlib import Path

import pytest
import torch

from t2ifb.scorers import BLIPScore, ImageReward
from t2ifb.scorers.blip import translate
from tests.scorers.blip_parts import (
    image_reward_shapes,
    write_small,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("image_reward"))


@pytest.mark.parametrize("scorer", [ImageReward, BLIPScore])
def test_from_a_folder_with_prompts_and_images_of_any_size(
    checkpoint: Path, scorer: type[ImageReward | BLIPScore]
) -> None:
    built = scorer.from_pretrained(checkpoint.parent)
    images = torch.rand(2, 3, 31, 40, requires_grad=True)
    scores = built(images, ["a red circle", "two blue squares and a circle " * 20])
    assert scores.shape == (2,)
    assert scores.dtype == torch.float32
    scores.sum().backward()
    assert images.grad is not None
    assert (images.grad.abs().sum((1, 2, 3)) > 0).all()
    assert all(weight.grad is None for weight in built.parameters())
    one = built(images[:1], ["a red circle"])  # the padding of a batch changes nothing
    torch.testing.assert_close(one, scores[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scorer", [ImageReward, BLIPScore])
def test_prompts_that_are_cut_off_are_known(checkpoint: Path, scorer: type[ImageReward | BLIPScore]) -> None:
    fits, too_long = ("circle " * words for words in (33, 34))
    assert scorer.from_pretrained(checkpoint.parent).cut_prompts([fits, too_long, "a red circle"]) == [too_long]


@pytest.mark.parametrize("scorer", [ImageReward, BLIPScore])
def test_half_precision_is_near(checkpoint: Path, scorer: type[ImageReward | BLIPScore]) -> None:
    images, prompts = torch.rand(4, 3, 24, 24), ["a red circle", "a square", "two circles", "a blue square"]
    full, half = (scorer.from_pretrained(checkpoint.parent, precision=p)(images, prompts) for p in ("fp32", "bf16"))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0, atol=0.2 * full.std().item())


def test_names_are_translated_and_back() -> None:
    names = {name.removeprefix("blip.") for name in image_reward_shapes() if name.startswith("blip.")}
    there = {translate(name) for name in names}
    assert len(there) == len(names)
    assert {translate(name, to_original=True) for name in there} == names


def test_another_vocabulary_a_precision_and_a_count_that_do_not_fit_are_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]) + "\n")
    scorer = ImageReward.from_pretrained(checkpoint, vocabulary=tmp_path)
    with pytest.raises(ValueError, match="found 6 tokens, the text tower has 15"):
        scorer(torch.rand(1, 3, 24, 24), ["a red circle"])
    with pytest.raises(ValueError, match="precision must be fp32, fp16 or bf16, not 'fp8'"):
        BLIPScore.from_pretrained(checkpoint.parent, precision="fp8")
    with pytest.raises(ValueError, match="got 2 images and 1 prompts"):
        ImageReward.from_pretrained(checkpoint)(torch.rand(2, 3, 24, 24), ["a red circle"])
