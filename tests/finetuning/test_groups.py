"""Groups of samples: advantages, ranks, parts, and minibatches with noise."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from t2ifb.finetuning.algorithm import Experience
from t2ifb.finetuning.groups import (
    SMALLEST_DEVIATION,
    Groups,
    advantages,
    draw_groups,
    equal_parts,
    learned_steps,
    noised,
    repeated,
    without_variance,
)
from t2ifb.finetuning.policy import Policy
from tests.finetuning.method_parts import BATCH, make_module


def test_advantages_compare_a_prompts_own_samples() -> None:
    rewards = torch.tensor([1.0, 3.0, 10.0, 10.0])
    by_group = advantages(rewards, 2)
    assert by_group.tolist() == pytest.approx([-1 / (1 + SMALLEST_DEVIATION), 1 / (1 + SMALLEST_DEVIATION), 0, 0])
    deviation = float(rewards.std(correction=0))
    assert advantages(rewards, 2, "batch").tolist() == pytest.approx([-1 / deviation, 1 / deviation, 0, 0], rel=1e-3)
    assert advantages(torch.tensor([0.0] * 99 + [1.0]), 100, most=5.0).max() == 5.0
    assert without_variance(rewards, 2).tolist() == [0, 0, 1, 1]


@given(st.lists(st.floats(-10, 10, width=32), min_size=4, max_size=4), st.floats(-100, 100))
def test_an_offset_of_a_prompt_changes_nothing(rewards: list[float], offset: float) -> None:
    """The Bradley-Terry loss leaves it undetermined."""
    one = torch.tensor(rewards, dtype=torch.float64)
    assert torch.allclose(advantages(one.float(), 4), advantages((one + offset).float(), 4), atol=0.05)


def test_samples_are_ranked_within_their_prompt() -> None:
    groups = Groups(["a"] * 3 + ["b"] * 3, torch.zeros(6, 1, 1, 1), torch.tensor([1.0, 3, 2, 9, 9, 10]), 3)
    assert groups.order.tolist() == [[1, 2, 0], [5, 3, 4]]
    assert groups.compared_by("reward") is groups


def test_the_random_control_has_the_same_rewards_in_an_order_of_their_own() -> None:
    groups = Groups(["a"] * 3 + ["b"] * 3, torch.zeros(6, 1, 1, 1), torch.tensor([1.0, 3, 2, 9, 9, 10]), 3)
    control = groups.compared_by("random")
    assert control.order.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert control.rewards.tolist() == [3, 2, 1, 10, 9, 9]
    assert groups.rewards.tolist() == [1, 3, 2, 9, 9, 10]


def test_a_repeated_batch_numbers_its_samples() -> None:
    batch = repeated(BATCH, 3)
    assert batch.prompts == [BATCH.prompts[0]] * 3 + [BATCH.prompts[1]] * 3
    assert (batch.numbers, batch.total) == ([0, 1, 2, 3, 4, 5], 6)


@pytest.mark.parametrize("samples_per_batch", [1, 4])
def test_samples_do_not_depend_on_how_they_are_drawn_together(samples_per_batch: int) -> None:
    policy: Policy = make_module(object_without_needs()).policy
    policy.samples_per_batch = samples_per_batch
    groups = draw_groups(policy, BATCH, 2)
    policy.samples_per_batch = 2
    again = draw_groups(policy, BATCH, 2)
    assert groups.prompts == again.prompts
    torch.testing.assert_close(groups.latents, again.latents, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(groups.rewards, policy.score(groups.latents, groups.prompts))


def object_without_needs() -> object:
    from t2ifb.finetuning.best_of_n import BestOfN

    return BestOfN()


def test_minibatches_use_every_row_before_one_comes_again() -> None:
    rows = Experience([str(n) for n in range(6)], {"latents": torch.zeros(6, 4, 8, 8)})
    parts = list(noised(rows, 4, 3, steps=(2, 4), empty=0.0, seed=1))
    assert [len(part) for part in parts] == [4, 4, 4]
    prompts = [prompt for part in parts for prompt in part.prompts]
    assert sorted(prompts[:6]) == sorted(prompts[6:]) == [str(n) for n in range(6)]
    steps = torch.cat([part["step"] for part in parts])
    assert set(steps.tolist()) == {2, 3, 4}
    noise = torch.cat([part["noise"] for part in parts])
    assert len({float(each.sum()) for each in noise}) == 12
    again = list(noised(rows, 4, 3, steps=(2, 4), empty=0.0, seed=1))
    assert all(torch.equal(one["noise"], other["noise"]) for one, other in zip(parts, again, strict=True))


def test_some_prompts_are_emptied() -> None:
    rows = Experience(["a prompt"] * 100, {"latents": torch.zeros(100, 1, 2, 2)})
    (part,) = noised(rows, 100, 1, steps=(0, 4), empty=0.3, seed=0)
    assert 15 <= part.prompts.count("") <= 45


def test_parts_are_equal_and_enough() -> None:
    assert equal_parts(24, 5, 1) == 4
    assert equal_parts(24, 24, 6) == 4
    assert equal_parts(7, 3, 1) == 1
    with pytest.raises(ValueError, match="updates=8 need at least as many samples, not 7"):
        equal_parts(7, 3, 8)


@pytest.mark.parametrize("method", ["best_of_n.BestOfN", "dpo.DPO", "nft.NFT"])
def test_pools_are_learned_at_the_steps_that_are_asked_for(method: str) -> None:
    from hydra.utils import get_class

    build: Any = get_class(f"t2ifb.finetuning.{method}")
    module = make_module(build(group_size=4, steps=[1, 2], updates=2, **({"best": 1} if "nft" not in method else {})))
    rows = module._collect(BATCH)
    assert rows is not None
    steps = torch.cat([part["step"] for part in module.algorithm.minibatches(rows, seed=0)])
    assert set(steps.tolist()) == {1, 2}
    with pytest.raises(ValueError, match=r"^steps=\[1, 9\]: first and last step must lie within the steps 0 to 4"):
        build(steps=[1, 9]).check(5)
    with pytest.raises(ValueError, match="pick must be reward or random, not 'worst'"):
        build(pick="worst")


def test_all_steps_are_learned_by_default() -> None:
    assert learned_steps(None, 5) == (0, 4)


def test_a_reward_that_is_nan_ranks_last() -> None:
    groups = Groups(["a"] * 4, torch.zeros(4, 1), torch.tensor([0.1, torch.nan, 0.5, 0.3]), 4)
    assert groups.order.tolist() == [[2, 3, 0, 1]]
