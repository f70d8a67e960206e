"""DRaFT's update is the gradient through the whole end of the chain."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from t2ifb.data.datamodules import PromptBatch
from t2ifb.diffusion.path import gaussian_kl
from t2ifb.finetuning.draft import DRaFT
from t2ifb.finetuning.module import FineTuningModule
from t2ifb.utils.random_streams import gaussian
from tests.finetuning.method_parts import BATCH, assert_alike, gradient, make_module


def by_the_book(module: FineTuningModule, batch: PromptBatch, depth: int) -> Tensor:
    """The chain written out, as one loss."""
    policy, algorithm = module.policy, module.algorithm
    assert isinstance(algorithm, DRaFT)
    schedule, steps = policy.schedule, len(policy.schedule)
    keys = [(policy.seed, batch.position, number) for number in batch.numbers]
    denoise = policy.sampler.denoiser(policy.model, schedule, batch.prompts)
    latents, loss = gaussian(keys, 0, policy.model.latent_shape), torch.zeros(())
    for step in range(steps):
        with torch.set_grad_enabled(step >= steps - depth):
            move = schedule.step(denoise(latents, step), latents, step)
            if step >= steps - depth:
                fixed = latents.detach()
                with policy.reference():
                    base = schedule.kl_step(denoise(fixed, step), fixed, step)
                tuned = schedule.kl_step(denoise(fixed, step), fixed, step)
                loss = loss + algorithm.beta / depth * gaussian_kl(tuned.mean, base.mean, tuned.variance).mean()
            latents = move.mean + move.variance**0.5 * gaussian(keys, step + 1, policy.model.latent_shape)
    loss = loss - algorithm.alpha * policy.reward(policy.model.decode(latents), batch.prompts).mean()
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, policy.adapters)])


@pytest.mark.parametrize(
    ("last_steps", "beta", "checkpoint_steps"), [(1, 0.02, False), (3, 0.02, False), (4, 0.0, False), (4, 0.02, True)]
)
def test_an_update_follows_the_chain(last_steps: int, beta: float, checkpoint_steps: bool) -> None:
    module = make_module(DRaFT(last_steps, checkpoint_steps=checkpoint_steps), beta=beta)
    module.training_step(BATCH, 0)
    assert_alike(gradient(module), by_the_book(module, BATCH, last_steps))


def kept(method: DRaFT) -> int:
    """Bytes that a loss keeps for its backward pass."""
    module, sizes = make_module(method), [0]
    part = replace(module.algorithm.collect(module.policy, BATCH), total=2)

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module.algorithm.loss(module.policy, part)
    return sum(sizes)


def test_with_checkpoints_memory_hardly_grows_with_the_number_of_steps() -> None:
    plain, saving = (
        kept(DRaFT(4, checkpoint_steps=checkpoints)) - kept(DRaFT(2, checkpoint_steps=checkpoints))
        for checkpoints in (False, True)
    )
    assert 0 <= saving < 0.05 * plain


def test_random_truncation_goes_back_as_far_as_it_draws() -> None:
    method = DRaFT(3, "random")
    depths = [method.depth(1, position) for position in range(100)]
    assert set(depths) == {1, 2, 3} and depths == [method.depth(1, position) for position in range(100)]
    position = depths.index(2)
    batch = PromptBatch(position, BATCH.prompts, BATCH.numbers, BATCH.total)
    module = make_module(method)
    module.training_step(batch, 0)
    assert_alike(gradient(module), by_the_book(module, batch, 2))


def test_pieces_of_a_batch_are_the_whole() -> None:
    whole, pieces = make_module(DRaFT(2)), make_module(DRaFT(2), micro_batch_size=1)
    whole.training_step(BATCH, 0)
    pieces.training_step(BATCH, 0)
    assert_alike(gradient(pieces), gradient(whole))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (partial(DRaFT, 5), "last_steps=5 must be from 1 to the 4 steps"),
        (partial(DRaFT, 0), "last_steps=0 must be from 1"),
        (partial(DRaFT, 1, "some"), "truncation must be fixed or random, not 'some'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(method: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_module(method())
