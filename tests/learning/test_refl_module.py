"""One update is the gradient of the loss it stands for."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from t2ifb.data.prompt_batches import PromptBatch
from t2ifb.diffusion.lora import LoRA
from t2ifb.diffusion.rollout import Rollout
from t2ifb.diffusion.sampling import Sampler
from t2ifb.learning.losses import gaussian_kl
from t2ifb.learning.refl_module import ReFLModule
from tests.diffusion.parts import PROMPTS, shapes_model
from tests.learning.tuning_worlds import Redness

BATCH = PromptBatch(position=5, prompts=PROMPTS, numbers=[0, 1], total=2)


def make_module(away: bool = True, **changes: Any) -> ReFLModule:
    """A module outside of a trainer; `away` moves the policy from the base model."""
    settings: dict[str, Any] = {"alpha": 3.0, "beta": 0.02, "window": [1, 3], "gradient_clip_norm": None, "seed": 1}
    module = ReFLModule(
        shapes_model(), LoRA(), Redness(), partial(torch.optim.SGD, lr=1.0), Sampler(4, 2.0), **(settings | changes)
    )
    if away:
        generator = torch.Generator().manual_seed(0)
        for weight in module.adapters:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.05
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign, assignment]
    module._trainer = SimpleNamespace(world_size=1, global_step=0, log_every_n_steps=1)  # type: ignore[assignment]
    step = SimpleNamespace(zero_grad=lambda: module.zero_grad(), step=lambda: None)
    module.optimizers = lambda: step  # type: ignore[method-assign, assignment, return-value]
    return module


def gradient(module: ReFLModule) -> Tensor:
    return torch.cat([weight.grad.flatten() for weight in module.adapters if weight.grad is not None])


def assert_alike(found: Tensor, expected: Tensor) -> None:
    """Alike but for rounding, which is relative to the largest entries."""
    assert float((found - expected).norm()) < 1e-3 * float(expected.norm())


def by_the_book(module: ReFLModule, batch: PromptBatch) -> Tensor:
    """Equation 5 written out once more, as one loss."""
    loss = torch.zeros(())
    steps = module.indices(batch.position)
    for step in steps:
        keys = [(module.seed, batch.position, number) for number in batch.numbers]
        rollout = Rollout(module.schedule, keys, module.model.latent_shape, "cpu")
        denoise = module.rollout.denoiser(module.model, module.schedule, batch.prompts)
        noisy = rollout.to(step, denoise)
        with torch.no_grad(), module.model.base():
            base = module.schedule.kl_transition(denoise(noisy, step), noisy, step)
        policy = module.schedule.kl_transition(denoise(noisy, step), noisy, step)
        reward = module.reward(module.model.decode(policy.clean), batch.prompts)
        kl = gaussian_kl(policy.mean, base.mean, policy.variance)
        loss = loss + (module.beta * kl - module.alpha * reward).mean() / len(steps)
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, module.adapters)])


@pytest.mark.parametrize("gradients", [1, 3])
def test_an_update_follows_equation_5(gradients: int) -> None:
    module = make_module(gradients_per_rollout=gradients)
    module.training_step(BATCH, 0)
    assert_alike(gradient(module), by_the_book(module, BATCH))


def test_the_kl_alone_reaches_the_adapters_and_is_nothing_at_the_base_model() -> None:
    module = make_module(alpha=0.0)
    module.training_step(BATCH, 0)
    assert float(module.terms["kl"].min()) > 0
    assert gradient(module).any()
    fresh = make_module(away=False, alpha=0.0)
    fresh.training_step(BATCH, 0)
    assert float(fresh.terms["kl"].abs().max()) == 0
    assert not gradient(fresh).any()


def test_pieces_of_a_batch_are_the_whole() -> None:
    whole, pieces = make_module(), make_module(micro_batch_size=1)
    whole.training_step(BATCH, 0)
    pieces.training_step(BATCH, 0)
    assert_alike(gradient(pieces), gradient(whole))


def test_a_common_factor_of_alpha_and_beta_is_a_factor_of_the_gradient() -> None:
    one, ten = make_module(alpha=1.0, beta=0.1), make_module(alpha=10.0, beta=1.0)
    one.training_step(BATCH, 0)
    ten.training_step(BATCH, 0)
    assert_alike(10 * gradient(one), gradient(ten))


def test_steps_are_of_the_window_and_a_function_of_the_position() -> None:
    module = make_module(window=[1, 3], gradients_per_rollout=2)
    drawn = [module.indices(position) for position in range(200)]
    assert drawn == [module.indices(position) for position in range(200)]
    assert {tuple(steps) for steps in drawn} == {(1, 2), (1, 3), (2, 3)}
    assert make_module(window=None).window == (0, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": [2, 4]}, "must lie within the steps 0 to 3"),
        ({"window": [3, 2]}, "must lie within"),
        ({"gradients_per_rollout": 4}, "from 1 to the 3 steps"),
        ({"alpha": -1.0}, "must not be negative"),
        ({"micro_batch_size": 0}, "not below 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_module(**change)
