"""Questions on which rewards disagree come first."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from t2ifb.annotation.items import read_items
from t2ifb.annotation.selection import by_disagreement, disagreement
from tests.annotation.parts import write_generated


def test_disagreement_is_of_differences_between_images() -> None:
    assert disagreement(torch.tensor([[0.0, 1.0], [5.0, 6.0]])) == 0
    assert disagreement(torch.tensor([[0.0, 2.0], [2.0, 0.0]])) == pytest.approx(1)
    assert disagreement(torch.tensor([[0.0, 2.0], [0.0, 0.0]])) == pytest.approx(0.5)


def test_questions_are_sorted_by_it(tmp_path: Path) -> None:
    items = read_items(write_generated(tmp_path, prompts=6))

    def likes(images: Tensor, prompts: list[str]) -> Tensor:
        return images[:, 0].mean((1, 2)) * (5 if prompts[0] == "prompt 4" else 0)

    def dislikes(images: Tensor, prompts: list[str]) -> Tensor:
        return -likes(images, prompts)

    ordered = by_disagreement(items, [likes, dislikes], torch.device("cpu"))
    assert ordered[0].prompt == "prompt 4"
    assert ordered[1:] == [item for item in items if item.prompt != "prompt 4"]
    with pytest.raises(ValueError, match="needs an ensemble of at least two rewards, got 1"):
        by_disagreement(items, [likes], torch.device("cpu"))
