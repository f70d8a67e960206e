"""A mix is the weighted sum of scorers in units of their spread on reference images."""

import pytest
import torch
from torch import Tensor, nn

from t2ifb.scorers import Mix


class Channel(nn.Module):
    """The mean of one colour."""

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.channel = channel

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return images[:, self.channel].mean((1, 2))


IMAGES, PROMPTS = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0)), ["x"] * 20


def mix(**weights: float) -> Mix:
    return Mix({"red": Channel(0), "blue": Channel(2)}, weights)


def test_without_reference_images_it_is_the_weighted_sum() -> None:
    expected = IMAGES[:, 0].mean((1, 2)) + 0.5 * IMAGES[:, 2].mean((1, 2))
    torch.testing.assert_close(mix(blue=0.5)(IMAGES, PROMPTS), expected)


def test_each_scorer_has_its_own_unit() -> None:
    reward = mix(red=2.0)
    reward.standardise(reward.parts(IMAGES, PROMPTS))
    red, blue = (IMAGES[:, channel].mean((1, 2)) for channel in (0, 2))
    expected = 2 * (red - red.mean()) / red.std() + (blue - blue.mean()) / blue.std()
    torch.testing.assert_close(reward(IMAGES, PROMPTS), expected, atol=1e-5, rtol=1e-4)


def test_a_score_that_is_missing_does_not_spoil_the_unit() -> None:
    reward, scores = mix(), mix().parts(IMAGES, PROMPTS)
    holed = {name: torch.cat([score, torch.tensor([torch.nan])]) for name, score in scores.items()}
    reward.standardise(holed)
    assert reward.means.isfinite().all()
    assert reward.deviations.isfinite().all()


def test_gradients_reach_the_images() -> None:
    images = IMAGES.clone().requires_grad_()
    mix()(images, PROMPTS).sum().backward()
    assert images.grad is not None
    assert images.grad[:, 0].all()
    assert not images.grad[:, 1].any()


def test_what_cannot_be_mixed_is_said() -> None:
    with pytest.raises(ValueError, match="at least one scorer"):
        Mix({})
    with pytest.raises(ValueError, match="weights for green, but the scorers are red, blue"):
        mix(green=1.0)
    with pytest.raises(ValueError, match="red gives all reference images nearly the same score"):
        mix().standardise({"red": torch.ones(5), "blue": torch.rand(5)})
