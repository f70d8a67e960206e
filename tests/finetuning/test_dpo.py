"""Diffusion-DPO against its formula written out, on own samples and on given pairs."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from t2ifb.data.datamodules import Pairs, PromptBatch
from t2ifb.finetuning.dpo import DPO
from t2ifb.finetuning.groups import draw_groups
from t2ifb.finetuning.module import FineTuningModule
from tests.diffusion.parts import PROMPTS
from tests.finetuning.method_parts import BATCH, assert_alike, gradient, make_module

OWN = DPO(group_size=4, best=2, updates=2, pairs_per_update=3, beta_dpo=300.0, empty_prompts=0.0)


def by_the_book(module: FineTuningModule, pairs: Any) -> Tensor:
    """arXiv 2311.12908, equation 14, one pair at a time, with the network's output as ε."""
    policy, algorithm, loss = module.policy, module.algorithm, torch.zeros(())
    assert isinstance(algorithm, DPO)
    for row, prompt in enumerate(pairs.prompts):
        step, noise = int(pairs["step"][row]), pairs["noise"][row : row + 1]
        a, s = float(policy.schedule.a[step]), float(policy.schedule.s[step])
        states, inner = policy.model.encode([prompt]), []
        for x in pairs["latents"][row]:
            noisy, time = a * x + s * noise, policy.schedule.timesteps[step : step + 1]
            error = (noise - policy.model.predict(noisy, time, states)).pow(2).mean()
            with policy.reference():
                base = (noise - policy.model.predict(noisy, time, states)).pow(2).mean()
            inner.append((error - base, base))
        unit = (inner[0][1] + inner[1][1]) / 2 if algorithm.relative else 1.0
        chosen = torch.sigmoid(-algorithm.beta_dpo / 2 * (inner[0][0] - inner[1][0]) / unit)
        loss = loss - chosen.log() / len(pairs.prompts)
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, policy.adapters)])


@pytest.mark.parametrize("method", [OWN, replace(OWN, relative=True, beta_dpo=10.0)], ids=["absolute", "relative"])
def test_an_update_follows_equation_14(method: DPO) -> None:
    module = make_module(method)
    module.training_step(BATCH, 0)
    assert module.experience is not None
    again = make_module(method)
    again.experience = module.experience
    again._parts(BATCH)
    seeded = next(iter(again.algorithm.minibatches(module.experience, seed_of(again))))
    assert_alike(gradient(module), by_the_book(module, seeded))


def seed_of(module: FineTuningModule) -> int:
    """The seed that the loop gives to the minibatches of `BATCH`."""
    seeds: list[int] = []
    original = type(module.algorithm).minibatches

    def noting(self: Any, experience: Any, seed: int) -> Any:
        seeds.append(seed)
        return original(self, experience, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(module.algorithm), "minibatches", noting)
        module._minibatches = None
        module._parts(BATCH)
    return seeds[0]


@pytest.mark.parametrize("away", [False, True], ids=["the base model", "adapters of another run"])
def test_before_the_first_update_the_loss_is_log_two(away: bool) -> None:
    module = make_module(OWN, away)
    if away:  # a layer that the other run left as it was
        named = module.policy.model.denoiser.named_parameters()
        next(weight for name, weight in named if "lora_B" in name).data.zero_()
    noted: dict[str, Tensor] = {}
    module.note = lambda **figures: noted.update(figures)  # type: ignore[method-assign]
    module.training_step(replace(BATCH, position=0), 0)
    assert noted["loss"].tolist() == pytest.approx([math.log(2)] * len(noted["loss"]))


def test_the_loss_refers_to_the_adapters_at_the_start() -> None:
    module = make_module(OWN)
    module.training_step(replace(BATCH, position=0), 0)
    before = [weight.detach().clone() for weight in module.policy.adapters]
    for weight in module.policy.adapters:
        weight.data += 0.1
    module.training_step(replace(BATCH, position=1), 0)
    with module.policy.beginning():
        assert all(torch.equal(now, kept) for now, kept in zip(module.policy.adapters, before, strict=True))


def test_pairs_are_of_the_best_and_the_worst_samples_of_a_prompt() -> None:
    module = make_module(OWN)
    pairs = module.algorithm.collect(module.policy, BATCH)
    assert len(pairs) == 2 * 2 * 2 and pairs["latents"].shape[1] == 2
    for prompt, (better, worse) in zip(pairs.prompts, pairs["latents"], strict=True):
        rewards = module.policy.score(torch.stack([better, worse]), [prompt] * 2)
        assert rewards[0] > rewards[1]


def test_pairs_of_the_control_ignore_the_reward() -> None:
    module = make_module(replace(OWN, pick="random", best=1))
    latents = draw_groups(module.policy, BATCH, 4).latents.unflatten(0, (2, 4))
    pairs = module.algorithm.collect(module.policy, BATCH)
    assert torch.equal(pairs["latents"], latents[:, [0, 3]])


def test_equal_rewards_prefer_neither() -> None:
    module = make_module(OWN)
    module.policy.reward = Same()
    assert len(module.algorithm.collect(module.policy, BATCH)) == 0


@pytest.mark.parametrize("numbers", [[], [0, 4], [0, 1, 2, 4, 5, 6]])
def test_a_reward_that_is_nan_is_never_preferred_and_is_an_error_if_too_few_are_left(numbers: list[int]) -> None:
    """Two of four samples are preferred, so that one number per prompt is too few."""
    module = make_module(OWN)
    module.policy.reward = Numbers(numbers)
    found = module.algorithm.collect(module.policy, BATCH)
    enough = len(numbers) == 6
    assert bool(found["weight"].isnan().any()) != enough
    part = next(iter(module.algorithm.minibatches(found, 0)))
    assert torch.isfinite(module.algorithm.loss(module.policy, replace(part, total=len(part))).total) == enough


class Numbers(torch.nn.Module):
    """NaN, but for some samples."""

    def __init__(self, numbers: list[int]) -> None:
        super().__init__()
        self.numbers = numbers

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        rewards = torch.full((len(prompts),), torch.nan)
        rewards[self.numbers] = torch.arange(len(self.numbers), dtype=torch.float32)
        return rewards


class Same(torch.nn.Module):
    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return torch.zeros(len(prompts))


def given_pairs(module: FineTuningModule) -> PromptBatch:
    """Pairs of a data set; the second counts more."""
    latents = torch.randn(2, 2, *module.policy.model.latent_shape, generator=torch.Generator().manual_seed(0))
    return PromptBatch(3, PROMPTS, [0, 1], 2, pairs=Pairs(latents, torch.tensor([0.5, 1.5]), torch.ones(2)))


def test_an_update_on_given_pairs_follows_equation_14_with_their_weights() -> None:
    module = make_module(DPO(group_size=None, beta_dpo=300.0, empty_prompts=0.0))
    assert module.algorithm.data == "preference_pairs" and module.algorithm.updates_per_experience == 1
    module.training_step(given_pairs(module), 0)
    experience = module.experience
    assert experience is not None
    expected = sum(weight * by_the_book(module, experience.rows([row])) / 2 for row, weight in ((0, 0.5), (1, 1.5)))
    assert_alike(gradient(module), expected)  # type: ignore[arg-type]


def test_votes_on_a_pair_are_as_many_pairs_with_decided_votes() -> None:
    """Three of four votes for the better image: its pair three times and the turned one once, a quarter each."""
    module = make_module(DPO(group_size=None, beta_dpo=300.0, empty_prompts=0.0, steps=[1, 1]))
    batch = given_pairs(module)
    assert batch.pairs is not None
    module.training_step(replace(batch, pairs=replace(batch.pairs, shares=torch.tensor([0.75, 1.0]))), 0)
    experience, voted = module.experience, gradient(module)
    assert experience is not None
    turned = replace(experience.rows([0]), tensors={**experience.rows([0]).tensors})
    turned.tensors["latents"] = turned["latents"].flip(1)
    first = 0.75 * by_the_book(module, experience.rows([0])) + 0.25 * by_the_book(module, turned)
    assert_alike(voted, (0.5 * first + 1.5 * by_the_book(module, experience.rows([1]))) / 2)


def test_noise_of_given_pairs_does_not_depend_on_the_processes() -> None:
    module = make_module(DPO(group_size=None, empty_prompts=0.5, steps=[1, 2]))
    batch = given_pairs(module)
    assert batch.pairs is not None
    whole = module.algorithm.collect(module.policy, batch)
    second = Pairs(batch.pairs.latents[1:], batch.pairs.weights[1:], batch.pairs.shares[1:])
    share = module.algorithm.collect(module.policy, PromptBatch(3, PROMPTS[1:], [1], 2, pairs=second))
    assert share.prompts == whole.prompts[1:] and set(whole["step"].tolist()) <= {1, 2}
    assert all(torch.equal(share[name], whole[name][1:]) for name in ("latents", "noise", "step", "weight"))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (partial(DPO, best=5), "best=5 must be from 1 to half of group_size=8"),
        (partial(DPO, beta_dpo=0.0), "beta_dpo=0.0 must be above 0"),
        (partial(DPO, group_size=None, pick="random"), "pick='random' ranks own samples at random; give a group_size"),
        (partial(DPO, updates=0), "updates=0 and pairs_per_update=32 must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(method: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method()


def test_a_pool_of_equal_rewards_gives_updates_without_pairs() -> None:
    module = make_module(OWN)
    module.policy.reward = Equal()
    pairs = module.algorithm.collect(module.policy, BATCH)
    assert [len(part) for part in module.algorithm.minibatches(pairs, seed=0)] == [0] * OWN.updates
    module.training_step(BATCH, 0)
    assert all(weight.grad is None or not weight.grad.any() for weight in module.policy.adapters)


class Equal(torch.nn.Module):
    """A reward that is the same for all images."""

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return torch.zeros(len(images))
