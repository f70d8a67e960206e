"""The losses against closed forms and independent implementations."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from t2ifb.diffusion.path import gaussian_kl
from t2ifb.diffusion.sampling import Sampler
from t2ifb.training.losses import bradley_terry_loss, kl_sums, votes_predicted
from tests.diffusion.parts import shapes_model

NUMBERS = st.lists(st.floats(-20, 20), min_size=1, max_size=8)


@given(NUMBERS)
def test_equal_rewards_cost_log_two(rewards: list[float]) -> None:
    value = torch.tensor(rewards)
    assert bradley_terry_loss(value, value).item() == pytest.approx(math.log(2), rel=1e-6)


@given(NUMBERS, st.integers(0, 1000))
def test_it_is_the_negative_log_likelihood_of_a_bernoulli(rewards: list[float], seed: int) -> None:
    better = torch.tensor(rewards, dtype=torch.float64)
    worse = better + torch.randn(len(rewards), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = -torch.distributions.Bernoulli(logits=better - worse).log_prob(torch.ones(len(rewards))).mean()
    assert bradley_terry_loss(better, worse).item() == pytest.approx(expected.item(), rel=1e-6)


def test_it_pushes_the_better_reward_up_and_the_worse_down_equally() -> None:
    better, worse = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
    bradley_terry_loss(better, worse).backward()
    assert (better.grad < 0).all()
    assert torch.allclose(better.grad, -worse.grad)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(any), min_size=1, max_size=4))
def test_votes_cost_what_they_cost_one_by_one(counts: list[tuple[int, int]]) -> None:
    """Shares and weights are a closed form of a list with one comparison per vote."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, len(counts), generator=generator, dtype=torch.float64)
    ballots = [(n, side) for n, pair in enumerate(counts) for side in (0, 1) for _ in range(pair[side])]
    better = torch.stack([(first, second)[side][n] for n, side in ballots])
    worse = torch.stack([(second, first)[side][n] for n, side in ballots])
    votes = torch.tensor(counts, dtype=torch.float64)
    weights = votes.sum(1)
    shares = votes[:, 0] / weights
    loss = bradley_terry_loss(first, second, shares=shares, weights=weights)
    torch.testing.assert_close(loss, bradley_terry_loss(better, worse))
    assert votes_predicted(first, second, shares, weights).item() == pytest.approx(int((better > worse).sum()))
    half = bradley_terry_loss(first, second, 2 * float(weights.sum()), shares, weights)
    torch.testing.assert_close(half, loss / 2)


def test_the_optimum_is_the_log_odds_of_the_votes() -> None:
    gap = torch.tensor([math.log(3)], requires_grad=True)  # three votes to one
    zero = torch.zeros(1)
    bradley_terry_loss(gap, zero, shares=torch.tensor([0.75]), weights=torch.tensor([4.0])).backward()
    assert gap.grad.item() == pytest.approx(0, abs=1e-7)


def test_the_last_two_steps_have_most_of_the_kl() -> None:
    """Their weight on the squared difference of the predicted noise, with the sampler of `shapes`."""
    schedule = Sampler(20).schedule_of(shapes_model())
    noisy, zero, one = torch.zeros(3, 1, 1, 1)
    weights = []
    for step in range(20):
        policy, base = (schedule.kl_step(output[None], noisy[None], step) for output in (one + 1, zero))
        weights.append(gaussian_kl(policy.mean, base.mean, policy.variance))
    sums = kl_sums(torch.stack(weights))
    assert sums["kl"].shape == (1,)
    assert float(weights[18] / sums["kl"]) == pytest.approx(0.73, abs=0.01)
    assert float(sums["kl"] - sums["kl_without_last_two"]) == pytest.approx(float(weights[18] + weights[19]), rel=1e-4)
