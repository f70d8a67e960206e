"""GRPO against its formula written out with diffusers' scheduler and torch.distributions."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.distributions import Normal

from t2ifb.data.datamodules import PromptBatch
from t2ifb.diffusion.path import eta_variance, gaussian_kl
from t2ifb.diffusion.sampling import Rollout
from t2ifb.finetuning.groups import repeated
from t2ifb.finetuning.grpo import GRPO
from t2ifb.finetuning.module import FineTuningModule
from t2ifb.shapes.weights import PIPELINE
from t2ifb.utils.random_streams import INITIAL, gaussian
from tests.finetuning.method_parts import BATCH, assert_alike, gradient, make_module


def by_the_book(module: FineTuningModule, batch: PromptBatch, K: int, window: range) -> Tensor:
    """Equation of the docstring on the policy's own DDIM trajectories (eta 1), at the first update: the ratio is 1."""
    policy, algorithm = module.policy, module.algorithm
    assert isinstance(algorithm, GRPO)
    scheduler = DDIMScheduler.from_pretrained(PIPELINE, subfolder="scheduler")
    scheduler.set_timesteps(len(policy.schedule))
    prompts = [prompt for prompt in batch.prompts for _ in range(K)]
    keys = [(policy.seed, batch.position, n * K + k) for n in batch.numbers for k in range(K)]
    denoise = policy.denoiser(prompts)
    latents, steps = gaussian(keys, INITIAL, policy.model.latent_shape), []
    with torch.no_grad():
        for index, time in enumerate(scheduler.timesteps):
            noise = gaussian(keys, index + 1, policy.model.latent_shape)
            output = denoise(latents, index)
            after = scheduler.step(output, time, latents, eta=1.0, variance_noise=noise).prev_sample
            steps.append((latents, after))
            latents = after
        reward = policy.reward(policy.model.decode(latents), prompts).unflatten(0, (-1, K))
    advantage = ((reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True, correction=0) + 1e-4)).flatten()
    loss = torch.zeros(())
    for index in window:
        noisy, after = steps[index]
        with torch.no_grad(), policy.reference():
            base = denoise(noisy, index)
        output = denoise(noisy, index)
        mean = scheduler.step(
            output, scheduler.timesteps[index], noisy, eta=1.0, variance_noise=torch.zeros_like(noisy)
        )
        deviation = policy.schedule.variances[index] ** 0.5
        log_prob = Normal(mean.prev_sample, deviation).log_prob(after).flatten(1).sum(1)
        ratio = ((log_prob - log_prob.detach()) / noisy[0].numel()).exp()
        kl = gaussian_kl(*(policy.schedule.kl_step(each, noisy, index).mean for each in (output, base)), deviation**2)
        loss = loss + (algorithm.beta * kl - algorithm.alpha * advantage * ratio).mean() / len(window)
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, policy.adapters)])


def test_an_update_follows_the_formula() -> None:
    module = make_module(GRPO(group_size=4, window=[0, 1]))
    module.training_step(BATCH, 0)
    assert_alike(gradient(module), by_the_book(module, BATCH, 4, range(2)))


@pytest.mark.parametrize(("micro_batch_size", "guidance_scale"), [(None, 1.0), (1, 4.0), (3, 4.0)])
def test_the_ratio_is_exactly_one_before_the_first_update(micro_batch_size: int | None, guidance_scale: float) -> None:
    module = make_module(
        GRPO(group_size=3, window=[0, 2], updates=2), guidance_scale=guidance_scale, micro_batch_size=micro_batch_size
    )
    ratios = []
    module.note = lambda **figures: ratios.append(figures["ratio"])  # type: ignore[method-assign]
    module.training_step(BATCH, 0)
    assert ratios and all(torch.equal(ratio, torch.ones_like(ratio)) for ratio in ratios)


def test_only_the_window_is_stochastic_if_so_wished() -> None:
    """As in MixGRPO: the trained steps have the sampler's noise, all others none."""
    algorithm = GRPO(group_size=2, window=[1, 2], noise="window")
    module = make_module(algorithm)
    policy = module.policy
    found = module.algorithm.collect(policy, BATCH)
    without = replace(policy.schedule, variance=partial(eta_variance, eta=0.0))
    samples = repeated(BATCH, 2)
    keys = [(policy.seed, BATCH.position, number) for number in samples.numbers]
    rollout, denoise = Rollout(without, keys, policy.model.latent_shape, "cpu"), policy.denoiser(samples.prompts)
    torch.testing.assert_close(found["noisy"][found["step"] == 1], rollout.to(1, denoise), atol=1e-4, rtol=1e-4)
    rollout.schedule = policy.schedule
    end = rollout.to(3, denoise)
    torch.testing.assert_close(found["next"][found["step"] == 2], end, atol=1e-4, rtol=1e-4)
    rollout.schedule = without
    scores = policy.scores(rollout.to(4, denoise), samples.prompts)
    torch.testing.assert_close(found["reward"][found["step"] == 1], scores, atol=1e-4, rtol=1e-4)
    module.training_step(BATCH, 0)  # its ratios are 1
    with pytest.raises(ValueError, match="noise must be all or window"):
        GRPO(noise="some")  # type: ignore[arg-type]


def test_a_ratio_that_is_not_one_before_the_first_update_is_an_error() -> None:
    module = make_module(GRPO(group_size=2, window=[0, 1], updates=2))
    module.training_step(BATCH, 0)
    assert module.experience is not None
    first, second = module.algorithm.minibatches(module.experience, 0)
    first["log_prob"].add_(1e-3)
    with pytest.raises(ValueError, match=r"before the first update of an experience the ratio is 0.99\d+, not 1"):
        module.algorithm.loss(module.policy, first)
    second["log_prob"].add_(1e-3)
    module.algorithm.loss(module.policy, second)  # later ratios may differ


def test_each_update_has_its_own_samples_at_any_micro_batch_size() -> None:
    found = []
    for micro_batch_size in (2, None):
        algorithm = GRPO(group_size=4, window=[0, 2], steps_per_sample=2, updates=2)
        module = make_module(algorithm, micro_batch_size=micro_batch_size)
        experience = module.algorithm.collect(module.policy, BATCH)
        assert len(experience) == 8 * 2 and len(set(experience["step"].tolist())) == 2
        first, second = module.algorithm.minibatches(experience, seed=3)
        assert len(first) == len(second) == 8
        blocks = [set(each["block"].tolist()) for each in (first, second)]
        assert not blocks[0] & blocks[1] and blocks[0] | blocks[1] == {0, 1}
        found.append((sorted(zip(first["step"].tolist(), first["reward"].tolist(), strict=True)), first.prompts[0]))
    for rows, prompt in found[1:]:
        assert prompt == found[0][1]
        torch.testing.assert_close(torch.tensor(rows), torch.tensor(found[0][0]), rtol=1e-4, atol=1e-4)


def test_advantages_are_within_prompts() -> None:
    module = make_module(GRPO(group_size=4, window=[0, 0]))
    experience = module.algorithm.collect(module.policy, BATCH)
    for prompt in BATCH.prompts:
        own = [n for n, each in enumerate(experience.prompts) if each == prompt]
        advantage, reward = experience["advantage"][own], experience["reward"][own]
        assert float(advantage.sum()) == pytest.approx(0, abs=1e-4)
        assert advantage.argsort().tolist() == reward.argsort().tolist()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (partial(GRPO, group_size=1), "group_size=1 must be at least 2"),
        (partial(GRPO, window=[0, 4]), r"window=\[0, 4\]: first and last step must lie within the steps 0 to 3"),
        (partial(GRPO, window=[0, 1], steps_per_sample=3), "steps_per_sample=3 must be from 1 to the 2 steps"),
        (partial(GRPO, deviation="all"), "deviation must be group or batch"),
    ],
)
def test_settings_that_do_not_fit_are_refused(method: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_module(method())


def test_a_step_without_variance_is_refused() -> None:
    module = make_module(GRPO(group_size=2, window=[0, 0]))
    module.policy.schedule.__dict__["variances"] = [0.0] * 4
    with pytest.raises(ValueError, match="a step with variance 0 has no log-probability"):
        module.training_step(BATCH, 0)
