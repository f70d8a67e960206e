"""A policy is its model, a reward and random numbers that depend on seed, batch and sample alone."""

from dataclasses import replace

import pytest
import torch

from t2ifb.data.datamodules import PromptBatch
from t2ifb.diffusion.lora import LoRA
from t2ifb.diffusion.sampling import Sampler
from t2ifb.finetuning.algorithm import Experience
from t2ifb.finetuning.policy import Policy
from tests.diffusion.parts import PROMPTS, shapes_model
from tests.finetuning.tuning_worlds import Redness

BATCH = PromptBatch(position=5, prompts=PROMPTS, numbers=[0, 1], total=2)


def make(seed: int = 1, away: bool = True) -> Policy:
    policy = Policy(shapes_model(), LoRA(), Redness(), Sampler(4, 2.0), seed)
    if away:
        for weight in policy.adapters:
            weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 0.05
    return policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    return make()


def test_only_the_adapters_are_trained(policy: Policy) -> None:
    trained = {id(weight) for weight in policy.parameters() if weight.requires_grad}
    assert trained == {id(weight) for weight in policy.adapters} != set()
    assert not policy.reward.training


def test_noise_depends_on_seed_batch_and_sample_alone(policy: Policy) -> None:
    whole = policy.start(BATCH)[0].latents
    second = policy.start(replace(BATCH, prompts=PROMPTS[1:], numbers=[1]))[0].latents
    assert torch.equal(second[0], whole[1]) and not torch.equal(whole[0], whole[1])
    assert not torch.equal(policy.start(replace(BATCH, position=6))[0].latents, whole)
    assert not torch.equal(make(seed=2, away=False).start(BATCH)[0].latents, whole)


@torch.no_grad()
def test_a_rollout_can_be_left_and_resumed_with_some_of_its_rows(policy: Policy) -> None:
    rollout, denoise = policy.start(BATCH)
    rollout.to(2, denoise)
    row = Experience(PROMPTS, {"latents": rollout.latents, **policy.resume_state(rollout)}, 2).rows([1])
    resumed, own = policy.resume(row)
    end, again = rollout.to(4, denoise), resumed.to(4, own)
    torch.testing.assert_close(again[0], end[1], rtol=1e-4, atol=1e-4)


def test_the_reference_is_the_base_model_and_the_adapters_come_back(policy: Policy) -> None:
    base, latents = make(away=False), policy.start(BATCH)[0].latents
    with torch.no_grad():
        moved = policy.denoiser(PROMPTS)(latents, 0)
        expected = base.denoiser(PROMPTS)(latents, 0)
    with policy.reference():
        found = policy.denoiser(PROMPTS)(latents, 0)
        assert not found.requires_grad
    assert torch.equal(found, expected)  # adapters of zero change nothing
    assert (moved - expected).abs().max() > 1e-3
    after = policy.denoiser(PROMPTS)(latents, 0)
    assert after.requires_grad
    torch.testing.assert_close(after.detach(), moved)


def test_the_kl_is_that_of_two_gaussians_and_zero_between_equals(policy: Policy) -> None:
    noisy, one, other = torch.randn(3, 2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    assert policy.kl(one, one, noisy, 1).tolist() == [0, 0]
    steps = [policy.step(output, noisy, 1) for output in (one, other)]
    expected = (steps[0].mean - steps[1].mean).square().flatten(1).sum(1) / (2 * steps[0].variance)
    found = policy.kl(one, other, noisy, 1)
    torch.testing.assert_close(found, expected.reshape(2))
    assert (found > 0).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(policy.kl(one, other, noisy, 1), found)


def test_without_guidance_the_conditional_branch_alone_is_asked(policy: Policy) -> None:
    plain = Policy(shapes_model(), LoRA(), Redness(), Sampler(4, 1.0), 1)
    base, latents = make(away=False), policy.start(BATCH)[0].latents
    with torch.no_grad():
        expected = plain.denoiser(PROMPTS)(latents, 0)
        assert torch.equal(base.denoiser(PROMPTS, guided=False)(latents, 0), expected)
        assert (base.denoiser(PROMPTS)(latents, 0) - expected).abs().max() > 1e-3


def test_rewards_are_those_of_the_decoded_images_and_reach_the_latents(policy: Policy) -> None:
    latents = torch.randn(2, *policy.model.latent_shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    rewards = policy.score(latents, PROMPTS)
    torch.testing.assert_close(rewards, Redness()(policy.model.decode(latents), PROMPTS))
    rewards.sum().backward()
    assert latents.grad is not None and latents.grad.any()
