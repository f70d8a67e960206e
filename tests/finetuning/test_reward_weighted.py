"""The reward-weighted likelihood: its gradient written out, and a reward that has none."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from t2ifb.data.datamodules import PromptBatch
from t2ifb.diffusion.path import gaussian_kl
from t2ifb.diffusion.sampling import Rollout
from t2ifb.finetuning.module import FineTuningModule
from t2ifb.finetuning.reward_weighted import LARGEST, RewardWeighted
from t2ifb.utils.random_streams import gaussian
from tests.finetuning.method_parts import BATCH, assert_alike, gradient, make_module
from tests.finetuning.tuning_worlds import make_tuning, tune


def by_the_book(module: FineTuningModule, batch: PromptBatch) -> Tensor:
    """The docstring's loss, with the U-Net's output as ε, as the embedded domain's model predicts it."""
    policy, algorithm = module.policy, module.algorithm
    assert isinstance(algorithm, RewardWeighted)
    schedule, shape = policy.schedule, policy.model.latent_shape
    keys = [(policy.seed, batch.position, number) for number in batch.numbers]
    denoise = policy.sampler.denoiser(policy.model, schedule, batch.prompts)
    samples = Rollout(schedule, keys, shape, "cpu").to(len(schedule), denoise)
    weights = torch.exp(policy.reward(policy.model.decode(samples), batch.prompts) / algorithm.temperature)
    conditioning, loss = policy.model.encode(batch.prompts), torch.zeros(())
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
        loss = loss + (algorithm.alpha * weights * error + algorithm.beta * kl).mean() / len(steps)
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, policy.adapters)])


@pytest.mark.parametrize("gradients", [1, 3])
def test_an_update_follows_the_weighted_likelihood(gradients: int) -> None:
    module = make_module(RewardWeighted(temperature=0.1, gradients_per_rollout=gradients))
    module.training_step(BATCH, 0)
    assert_alike(gradient(module), by_the_book(module, BATCH))


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
def test_a_reward_without_gradient_will_do_and_no_weight_is_above_the_largest(tmp_path: Path) -> None:
    method = RewardWeighted(temperature=0.01)
    summary = tune(make_tuning(algorithm=method, reward=Steps(), standardise=False), tmp_path)
    assert summary["steps"] == 6 and summary["skipped_updates"] == 0
    module = make_module(method)
    module.policy.reward = Steps()
    noted: dict[str, Tensor] = {}
    module.note = lambda **figures: noted.update(figures)  # type: ignore[method-assign]
    module.training_step(BATCH, 0)
    assert (noted["weight"] == LARGEST).all()


@pytest.mark.parametrize("wrong", [torch.inf, -torch.inf, torch.nan])
def test_a_reward_that_is_not_finite_reaches_the_gradient(wrong: float) -> None:
    module = make_module(RewardWeighted())
    module.policy.reward = Wrong(wrong)
    module.training_step(BATCH, 0)
    assert gradient(module).isnan().any()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (partial(RewardWeighted, 0.0), "temperature=0.0 must be above 0"),
        (partial(RewardWeighted, 1.0, 5), "gradients_per_rollout=5 must be from 1 to the 4 steps"),
    ],
)
def test_settings_that_do_not_fit_are_refused(method: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_module(method())
