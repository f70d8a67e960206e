"""Scorers are checked before a run, not in the middle of it."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from t2ifb.scorers.mix import Mix
from t2ifb.shapes.gold import GoldScore
from t2ifb.training.reward_checks import check_differentiable, check_known


class Reward(nn.Module):
    """Any function of images, with a name."""

    def __init__(self, score: Callable[[Tensor], Tensor], name: str = "mine") -> None:
        super().__init__()
        self.score, self.name = score, name
        self.register_buffer("place", torch.zeros(1))

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        assert len(images) == len(prompts)
        return self.score(images)


BRIGHT = Reward(lambda images: images.mean((1, 2, 3)))
USELESS = {
    "cut off": lambda images: images.detach().mean((1, 2, 3)),
    "constant": lambda images: 0 * images.mean((1, 2, 3)),
    "nan": lambda images: (images - images).sqrt().mean((1, 2, 3)),
    "unused": lambda images: nn.Parameter(torch.ones(len(images))) * 1,
}


def test_a_reward_with_a_gradient_passes_alone_and_in_a_mix_whatever_the_callers_mode() -> None:
    for mode in (nullcontext, torch.no_grad, torch.inference_mode):
        with mode():
            check_differentiable(BRIGHT)
            check_differentiable(Mix({"one": BRIGHT, "other": BRIGHT}))


@pytest.mark.parametrize("kind", USELESS)
def test_a_reward_without_a_useful_gradient_is_named(kind: str) -> None:
    useless = Reward(USELESS[kind], kind)
    with pytest.raises(ValueError, match=rf"the reward \({kind}\) has no gradient"):
        check_differentiable(useless)
    with pytest.raises(ValueError, match=rf"the reward \({kind}\) has no gradient"):
        check_differentiable(Mix({"good": BRIGHT, "useless": useless}))


def test_a_reward_without_a_name_is_called_by_its_class() -> None:
    with pytest.raises(ValueError, match=r"the reward \(GoldScore\) has no gradient"):
        check_differentiable(GoldScore())


def test_a_truth_has_to_know_the_prompts() -> None:
    known = "a red circle on a gray background"
    check_known(GoldScore(), [known], "x")
    check_known(None, ["a cat"], "x")
    check_known(BRIGHT, ["a cat"], "x")  # it does not say what it knows
    with pytest.raises(ValueError, match=r"GoldScore does not support 2 of the prompts, first 'a cat'.*leave it out"):
        check_known(GoldScore(), [known, "a cat", "a dog", "a cat"], "leave it out")
