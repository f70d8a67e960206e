"""DiffusionNFT against its formula, written on predicted images."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from t2ifb.finetuning.nft import NFT, OLD, relative_error
from tests.finetuning.method_parts import BATCH, gradient, make_module


def test_the_error_is_relative_to_its_size_and_has_the_gradient_of_the_square() -> None:
    clean = torch.zeros(2, 1, 2, 2)
    predicted = torch.tensor([1.0, 4.0])[:, None, None, None].expand(2, 1, 2, 2).clone().requires_grad_()
    error = relative_error(predicted, clean)
    assert error.tolist() == [1.0, 4.0]
    (slope,) = torch.autograd.grad(error.sum(), predicted)
    assert slope.flatten(1).sum(1).tolist() == pytest.approx([2.0, 2.0])


def test_an_update_follows_the_formula() -> None:
    b = 0.7
    module = make_module(NFT(group_size=4, nft_beta=b), beta=0.0)
    policy = module.policy
    policy.average(OLD, 0.0)
    policy.copies[OLD] = [copy * 0.5 for copy in policy.copies[OLD]]  # old adapters of their own
    noted: dict[str, Tensor] = {}
    module.note = lambda **figures: noted.update(figures)  # type: ignore[method-assign]
    experience = module._collect(BATCH)
    assert experience is not None
    (part,) = module.algorithm.minibatches(experience, seed=0)
    rows, loss = [], torch.zeros(())
    for row, prompt in enumerate(part.prompts):
        step, noise, clean = int(part["step"][row]), part["noise"][row : row + 1], part["latents"][row : row + 1]
        a, s = float(policy.schedule.a[step]), float(policy.schedule.s[step])
        noisy, time, states = (
            a * clean + s * noise,
            policy.schedule.timesteps[step : step + 1],
            policy.model.encode([prompt]),
        )
        now = (noisy - s * policy.model.predict(noisy, time, states)) / a
        with torch.no_grad(), policy.adapters_of(OLD):
            old = (noisy - s * policy.model.predict(noisy, time, states)) / a
        up, down = b * now + (1 - b) * old, (1 + b) * old - b * now
        w = float(part["weight"][row])
        sizes = [float((x - clean).abs().mean().detach()) for x in (up, down)]
        terms = [(x - clean).pow(2).mean() / size for x, size in zip((up, down), sizes, strict=True)]
        rows.append(module.algorithm.alpha * (w * terms[0] + (1 - w) * terms[1]) / b)
        loss = loss + rows[-1] / len(part.prompts)
    found = module.algorithm.loss(policy, part.parts(None).__next__().__class__(part.prompts, part.tensors, len(part)))
    torch.testing.assert_close(found.terms["loss"], torch.cat([row.reshape(1) for row in rows]), rtol=1e-3, atol=1e-4)
    expected = torch.cat([each.flatten() for each in torch.autograd.grad(loss, policy.adapters)])
    found.total.backward()
    assert float((gradient(module) - expected).norm()) < 1e-3 * float(expected.norm())


def test_weights_are_from_nought_to_one_and_ordered_as_the_rewards() -> None:
    module = make_module(NFT(group_size=4))
    experience = module._collect(BATCH)
    assert experience is not None
    weight, reward = experience["weight"].unflatten(0, (2, 4)), experience["reward"].unflatten(0, (2, 4))
    assert float(weight.min()) >= 0 and float(weight.max()) <= 1
    assert torch.equal(weight.argsort(dim=1), reward.argsort(dim=1))
    assert weight.mean(1).tolist() == pytest.approx([0.5, 0.5], abs=1e-4)


def test_weights_of_the_control_ignore_the_reward() -> None:
    weights = {}
    for pick in ("reward", "random"):
        module = make_module(NFT(group_size=4, pick=pick))  # type: ignore[arg-type]
        experience = module._collect(BATCH)
        assert experience is not None
        weights[pick] = experience["weight"].unflatten(0, (2, 4))
    assert torch.equal(weights["random"], weights["reward"].sort(1, descending=True).values)
    assert not torch.equal(weights["random"], weights["reward"])


def test_old_adapters_follow_the_trained_ones() -> None:
    module = make_module(NFT(group_size=2, old_decay=0.25, old_decay_rise=1.0))
    policy = module.policy
    module._collect(BATCH)  # at position 5 a quarter of the old ones stays
    before = [copy.clone() for copy in policy.copies[OLD]]
    for weight in policy.adapters:
        weight.data = weight.data + 1
    module._collect(BATCH)
    for old, copy in zip(before, policy.copies[OLD], strict=True):
        torch.testing.assert_close(copy, old + 0.75)


def test_a_process_without_a_share_of_the_batch_moves_the_old_adapters_too() -> None:
    module, idle = (make_module(NFT(group_size=2, old_decay=0.25, old_decay_rise=1.0)) for _ in range(2))
    for batch in (BATCH, replace(BATCH, position=6)):
        module._collect(batch)
        assert idle._collect(replace(batch, prompts=[], numbers=[])) is None
        for one, other in zip(module.policy.copies[OLD], idle.policy.copies[OLD], strict=True):
            assert torch.equal(one, other)
        for each in (module, idle):
            for weight in each.policy.adapters:
                weight.data = weight.data + 1


@pytest.mark.parametrize(
    "wrong",
    [{"nft_beta": 0.0}, {"old_decay": 1.0}, {"group_size": 1}, {"deviation": "groups"}, {"samples_per_update": -4}],
)
def test_settings_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        NFT(**wrong)
