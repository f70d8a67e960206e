"""Guidance distillation: the regression written out, its states, and that a student comes nearer to its teacher."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from t2ifb.diffusion.sampling import Rollout
from t2ifb.finetuning.guidance_distillation import GuidanceDistillation
from t2ifb.finetuning.module import FineTuningModule
from t2ifb.finetuning.policy import Policy
from tests.finetuning.method_parts import BATCH, assert_alike, gradient, make_module


def keys(module: FineTuningModule) -> list[tuple[int, ...]]:
    return [(module.policy.seed, BATCH.position, number) for number in BATCH.numbers]


def fill(policy: Policy, weights: list[Tensor]) -> None:
    for weight, value in zip(policy.adapters, weights, strict=True):
        weight.data = value.clone()


@pytest.mark.parametrize("tuned", [False, True])
def test_an_update_is_the_regression_on_the_guided_start(tuned: bool) -> None:
    """The start is the base model, or a tuned one."""
    module = make_module(GuidanceDistillation(3.0, gradients_per_rollout=2))
    policy = module.policy
    start = [weight.detach().clone() * tuned for weight in policy.adapters]
    if tuned:
        module.training_step(replace(BATCH, position=0), 0)  # keeps the start
        for weight in policy.adapters:
            weight.data = weight * 1.5 + 0.01
            weight.grad = None
    student = [weight.detach().clone() for weight in policy.adapters]
    module.training_step(BATCH, 0)
    experience, loss = module.experience, torch.zeros(())
    assert experience is not None
    for row, prompt in enumerate(experience.prompts):
        noisy, step = experience["latents"][row : row + 1], int(experience["step"][row])
        time, states, empty = policy.schedule.timesteps[step : step + 1], *map(policy.model.encode, ([prompt], [""]))
        with torch.no_grad():
            fill(policy, start)
            guided = 3 * policy.model.predict(noisy, time, states) - 2 * policy.model.predict(noisy, time, empty)
        fill(policy, student)
        loss = loss + (policy.model.predict(noisy, time, states) - guided).pow(2).mean() / len(experience)
    expected = torch.cat([each.flatten() for each in torch.autograd.grad(loss, policy.adapters)])
    assert_alike(gradient(module), expected)


@pytest.mark.parametrize("states", ["student", "teacher"])
def test_states_are_those_of_the_rollouts_that_are_asked_for(states: Any) -> None:
    module = make_module(GuidanceDistillation(3.0, states, window=[2, 2], gradients_per_rollout=1))
    policy = module.policy
    found = module.algorithm.collect(policy, BATCH)
    rollout = Rollout(policy.schedule, keys(module), policy.model.latent_shape, "cpu")
    if states == "student":
        expected = rollout.to(2, policy.denoiser(BATCH.prompts, guided=False))
    else:
        with policy.reference():
            expected = rollout.to(2, module.algorithm.teacher(policy, BATCH.prompts))  # type: ignore[attr-defined]
    torch.testing.assert_close(found["latents"], expected, atol=1e-4, rtol=1e-4)
    assert found["step"].tolist() == [2, 2]


def test_a_student_comes_nearer_to_its_teacher() -> None:
    module = make_module(GuidanceDistillation(3.0, window=[1, 1], gradients_per_rollout=1), away=False)
    optimizer, errors = torch.optim.AdamW(module.policy.adapters, lr=3e-3), []
    module.optimizers = lambda: optimizer  # type: ignore[method-assign, assignment, return-value]
    for _ in range(8):
        module.training_step(BATCH, 0)
        errors.append(float(module.terms["loss"].mean()))
    assert errors[-1] < 0.8 * errors[0]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (partial(GuidanceDistillation, 1.0), "teacher_scale=1.0 must be above 1"),
        (lambda: GuidanceDistillation(states="base"), "states must be student or teacher"),  # type: ignore[arg-type]
        (partial(GuidanceDistillation, gradients_per_rollout=5), "gradients_per_rollout=5 must be from 1 to the 4"),
    ],
)
def test_settings_that_do_not_fit_are_refused(method: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method().check(4)
