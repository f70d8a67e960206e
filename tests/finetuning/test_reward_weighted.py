"""The reward-weighted likelihood: its gradient written out, and a reward that has none."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from t2ifb.data.datamodules import PromptBatch
from t2ifb.diffusion.path import gaussian_kl
from t2ifb.diffusion.sampling import Rollout
from t2ifb.finetuning.groups import SMALLEST_DEVIATION
from t2ifb.finetuning.module import FineTuningModule
from t2ifb.finetuning.reward_weighted import RewardWeighted, weights
from t2ifb.utils.random_streams import gaussian
from tests.finetuning.method_parts import BATCH, assert_alike, gradient, make_module
from tests.finetuning.tuning_worlds import make_tuning, tune


def by_the_book(module: FineTuningModule, batch: PromptBatch) -> Tensor:
    """The docstring's loss, with the U-Net's output as ε, as the embedded domain's model predicts it."""
    policy, algorithm = module.policy, module.algorithm
    assert isinstance(algorithm, RewardWeighted)
    schedule, shape = policy.schedule, policy.model.latent_shape
    k = algorithm.group_size
    keys = [(policy.seed, batch.position, number * k + sample) for number in batch.numbers for sample in range(k)]
    prompts = [prompt for prompt in batch.prompts for _ in range(k)]
    denoise = policy.sampler.denoiser(policy.model, schedule, prompts)
    samples = Rollout(schedule, keys, shape, "cpu").to(len(schedule), denoise)
    rewards = policy.reward(policy.model.decode(samples), prompts).reshape(-1, k)
    weights = torch.empty_like(rewards)
    for of_prompt, weight in zip(rewards, weights, strict=True):
        centred = of_prompt - of_prompt.mean()
        advantage = centred / (centred.pow(2).mean().sqrt() + SMALLEST_DEVIATION)
        exponential = torch.exp(advantage / algorithm.temperature)
        weight.copy_(exponential / exponential.mean())
    conditioning, loss = policy.model.encode(prompts), torch.zeros(())
    steps = algorithm.indices(len(schedule), policy.seed, batch.position)
    for step in steps:
        noise, (a, s) = gaussian(keys, len(schedule) + 1 + step, shape), schedule.level(step, samples)
        noisy, time = a * samples + s * noise, schedule.time(step, samples)
        with policy.reference():
            base = schedule.kl_step(policy.model.predict(noisy, time, conditioning), noisy, step)
        output = policy.model.predict(noisy, time, conditioning)
        tuned = schedule.kl_step(output, noisy, step)
        kl = gaussian_kl(tuned.mean, base.mean, tuned.variance)
        error = (output - noise).pow(2).mean((1, 2, 3))
        loss = loss + (algorithm.alpha * weights.flatten() * error + algorithm.beta * kl).mean() / len(steps)
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, policy.adapters)])


@pytest.mark.parametrize("gradients", [1, 3])
def test_an_update_follows_the_weighted_likelihood(gradients: int) -> None:
    module = make_module(RewardWeighted(3, 2.0, gradients_per_rollout=gradients))
    module.training_step(BATCH, 0)
    assert_alike(gradient(module), by_the_book(module, BATCH))


def test_weights_compare_the_samples_of_a_prompt() -> None:
    """Their mean is 1 for each prompt and all rewards, and the largest possible one is their number."""
    advantage = torch.tensor([0.0, 0.0, 1.0, 3.0, -5.0, 5.0])
    found = weights(advantage, 2, temperature=2.0).unflatten(0, (3, 2))
    assert found.mean(1).tolist() == pytest.approx([1, 1, 1])
    assert found[0].tolist() == [1, 1]
    assert float(found[1, 1] / found[1, 0]) == pytest.approx(math.e)
    assert 1.98 < float(found[2, 1]) <= 2


def test_a_prompts_offset_changes_no_weight() -> None:
    """The Bradley-Terry loss leaves it undetermined."""
    found = []
    for offset in (0.0, 100.0):
        module = make_module(RewardWeighted(2))
        module.policy.reward = Offset(offset)
        found.append(module.algorithm.collect(module.policy, BATCH)["weight"])
    torch.testing.assert_close(found[0], found[1], atol=10 * SMALLEST_DEVIATION, rtol=0)
    assert not torch.allclose(found[0], torch.ones(4))


class Offset(nn.Module):
    """A reward with another offset for the second prompt."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        offset = torch.tensor([self.value * (prompt == BATCH.prompts[1]) for prompt in prompts])
        return 100 * images[:, 0].mean((1, 2)) + offset


class Steps(nn.Module):
    """A reward without gradient: how many pixels are light."""

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return 100 * (images > 0.5).float().mean((1, 2, 3))


class Wrong(nn.Module):
    """A reward that gives one value."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return torch.full((len(prompts),), self.value)


@pytest.mark.slow
def test_a_reward_without_gradient_will_do(tmp_path: Path) -> None:
    method = RewardWeighted(group_size=2, temperature=0.01)
    summary = tune(make_tuning(algorithm=method, reward=Steps(), standardise=False), tmp_path)
    assert summary["steps"] == 6 and summary["skipped_updates"] == 0


@pytest.mark.parametrize("wrong", [torch.inf, -torch.inf, torch.nan])
def test_a_reward_that_is_not_finite_reaches_the_gradient(wrong: float) -> None:
    module = make_module(RewardWeighted(2))
    module.policy.reward = Wrong(wrong)
    module.training_step(BATCH, 0)
    assert gradient(module).isnan().any()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (partial(RewardWeighted, 2, 0.0), "group_size=2 must be at least 2, and temperature=0.0 above 0"),
        (partial(RewardWeighted, 1), "group_size=1 must be at least 2"),
        (lambda: RewardWeighted(deviation="prompt"), "deviation must be group or batch, not 'prompt'"),  # type: ignore[arg-type]
        (partial(RewardWeighted, gradients_per_rollout=5), "gradients_per_rollout=5 must be from 1 to the 4 steps"),
    ],
)
def test_settings_that_do_not_fit_are_refused(method: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_module(method())
