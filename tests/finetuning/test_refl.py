"""One update of ReFL is the gradient of the loss it stands for."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from t2ifb.data.datamodules import PromptBatch
from t2ifb.diffusion.lora import LoRA
from t2ifb.diffusion.path import gaussian_kl
from t2ifb.diffusion.sampling import Rollout, Sampler
from t2ifb.finetuning.module import FineTuningModule, ReFLModule
from t2ifb.finetuning.policy import Policy
from t2ifb.finetuning.refl import ReFL
from tests.diffusion.parts import shapes_model
from tests.finetuning.method_parts import BATCH, assert_alike, gradient, make_module
from tests.finetuning.tuning_worlds import Redness

REFL = ReFL([1, 3])


def by_the_book(module: FineTuningModule, batch: PromptBatch) -> Tensor:
    """Equation 5 written out once more, as one loss."""
    loss, policy, algorithm = torch.zeros(()), module.policy, module.algorithm
    assert isinstance(algorithm, ReFL)
    steps = algorithm.indices(len(policy.schedule), policy.seed, batch.position)
    for step in steps:
        keys = [(policy.seed, batch.position, number) for number in batch.numbers]
        rollout = Rollout(policy.schedule, keys, policy.model.latent_shape, "cpu")
        denoise = policy.sampler.denoiser(policy.model, policy.schedule, batch.prompts)
        noisy = rollout.to(step, denoise)
        with policy.reference():
            base = policy.schedule.kl_step(denoise(noisy, step), noisy, step)
        tuned = policy.schedule.kl_step(denoise(noisy, step), noisy, step)
        reward = policy.reward(policy.model.decode(tuned.clean), batch.prompts)
        kl = gaussian_kl(tuned.mean, base.mean, tuned.variance)
        loss = loss + (algorithm.beta * kl - algorithm.alpha * reward).mean() / len(steps)
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, policy.adapters)])


@pytest.mark.parametrize("gradients", [1, 3])
def test_an_update_follows_equation_5(gradients: int) -> None:
    module = make_module(ReFL([1, 3], gradients))
    module.training_step(BATCH, 0)
    assert_alike(gradient(module), by_the_book(module, BATCH))


def test_the_kl_alone_reaches_the_adapters_and_is_nothing_at_the_base_model() -> None:
    module = make_module(REFL, alpha=0.0)
    module.training_step(BATCH, 0)
    assert float(module.terms["kl"].min()) > 0
    assert gradient(module).any()
    fresh = make_module(REFL, away=False, alpha=0.0)
    fresh.training_step(BATCH, 0)
    assert float(fresh.terms["kl"].abs().max()) == 0
    assert not gradient(fresh).any()


def test_pieces_of_a_batch_are_the_whole() -> None:
    whole, pieces = make_module(REFL), make_module(REFL, micro_batch_size=1)
    whole.training_step(BATCH, 0)
    pieces.training_step(BATCH, 0)
    assert_alike(gradient(pieces), gradient(whole))


def test_a_common_factor_of_alpha_and_beta_is_a_factor_of_the_gradient() -> None:
    one, ten = make_module(REFL, alpha=1.0, beta=0.1), make_module(REFL, alpha=10.0, beta=1.0)
    one.training_step(BATCH, 0)
    ten.training_step(BATCH, 0)
    assert_alike(10 * gradient(one), gradient(ten))


def test_steps_are_of_the_window_and_a_function_of_the_position() -> None:
    method = ReFL([1, 3], gradients_per_rollout=2)
    drawn = [method.indices(4, 1, position) for position in range(200)]
    assert drawn == [method.indices(4, 1, position) for position in range(200)]
    assert {tuple(steps) for steps in drawn} == {(1, 2), (1, 3), (2, 3)}
    assert ReFL().window_of(4) == (0, 3) and ReFL().window_of(40) == (30, 39)


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        (partial(ReFL, [2, 4]), {}, "must lie within the steps 0 to 3"),
        (partial(ReFL, [3, 2]), {}, "must lie within"),
        (partial(ReFL, [1, 3], 4), {}, "from 1 to the 3 steps"),
        (partial(ReFL, [1, 2, 3]), {}, "first and last step must lie"),
        (ReFL, {"alpha": -1.0}, "must not be negative"),
        (ReFL, {"micro_batch_size": 0}, "must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(method: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_module(method(), **change)


def test_the_reports_module_takes_refls_settings_plainly() -> None:
    policy = Policy(shapes_model(), LoRA(), Redness(), Sampler(4))
    module = ReFLModule(
        policy, torch.optim.AdamW, alpha=3.0, window=[1, 3], gradients_per_rollout=2, micro_batch_size=1
    )
    assert module.algorithm == ReFL([1, 3], 2, alpha=3.0) and module.micro_batch_size == 1


def test_figures_that_are_not_logged_yet_are_in_a_checkpoint() -> None:
    whole, first, second = (make_module(ReFL([1, 3])) for _ in range(3))
    logged: dict[str, dict[str, float]] = {"whole": {}, "second": {}}
    for name, module in (("whole", whole), ("second", second)):
        module.log = lambda key, value, name=name, **_: logged[name].update({key: value})  # type: ignore[method-assign]
    whole.note(reward=torch.tensor([1.0, 2.0]))
    whole.note(reward=torch.tensor([4.5]))
    first.note(reward=torch.tensor([1.0, 2.0]))
    checkpoint: dict[str, Any] = {}
    first.on_save_checkpoint(checkpoint)
    second.on_load_checkpoint(checkpoint)
    second.note(reward=torch.tensor([4.5]))
    whole._log()
    second._log()
    assert logged["whole"]["train/reward"] == logged["second"]["train/reward"] == 2.5
