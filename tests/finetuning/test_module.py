"""The loop of every algorithm: parts of a batch are the whole, figures are means, settings are checked."""

from typing import Any

import pytest
import torch

from t2ifb.finetuning.module import FineTuningModule, fast_attention
from t2ifb.finetuning.refl import ReFL
from tests.finetuning.method_parts import BATCH, assert_alike, gradient, make_module

METHOD = ReFL([1, 2], 2)


def test_several_parts_give_the_gradient_of_one() -> None:
    gradients = []
    for size in (None, 1):
        module = make_module(METHOD, micro_batch_size=size)
        module.training_step(BATCH, 0)
        gradients.append(gradient(module))
    assert float(gradients[0].norm()) > 0
    assert_alike(gradients[1], gradients[0])


def test_an_update_starts_from_no_gradient() -> None:
    module = make_module(METHOD)
    module.training_step(BATCH, 0)
    first = gradient(module).clone()
    module.training_step(BATCH, 0)
    assert_alike(gradient(module), first)


def test_figures_are_means_over_all_samples_since_the_last_time() -> None:
    module = make_module(METHOD)
    logged: dict[str, float] = {}
    module.log = lambda name, value, **_: logged.update({name: value})  # type: ignore[method-assign, assignment]
    module.note(reward=torch.tensor([1.0, 2.0]), kl=torch.tensor([4.0]))
    module.note(reward=torch.tensor([6.0]))
    module._log()
    assert logged == {"train/reward": 3.0, "train/kl": 4.0}
    module.note(reward=torch.tensor([5.0]))
    module._log()
    assert logged["train/reward"] == 5.0


@pytest.mark.parametrize("norm", [0.1, 1e9, None])
def test_the_gradient_is_limited_and_no_longer_than_that(norm: float | None) -> None:
    module: Any = make_module(METHOD)
    module.training_step(BATCH, 0)
    before = gradient(module).clone()
    module.gradient_clip_norm = norm
    module._trainer.precision_plugin = object()
    module.on_before_optimizer_step(torch.optim.SGD(module.policy.adapters, lr=1.0))
    factor = 1.0 if norm is None else min(1.0, norm / float(before.norm()))
    torch.testing.assert_close(gradient(module), factor * before, rtol=1e-4, atol=1e-9)


def test_a_batch_without_a_share_gives_a_gradient_of_zero() -> None:
    module: Any = make_module(METHOD)
    empty = type(BATCH)(position=BATCH.position, prompts=[], numbers=[], total=2)
    module.training_step(empty, 0)
    assert not gradient(module).any()
    assert module.experience is None


def test_settings_that_do_not_fit_are_refused() -> None:
    policy = make_module(METHOD).policy
    optimizer = torch.optim.SGD
    with pytest.raises(ValueError, match="micro_batch_size=0 must be at least 1"):
        FineTuningModule(policy, METHOD, optimizer, micro_batch_size=0)
    with pytest.raises(ValueError, match="must lie within the steps"):
        FineTuningModule(policy, ReFL([0, 9]), optimizer)


def test_the_optimiser_has_the_adapters_alone() -> None:
    module = make_module(METHOD)
    optimizer = module.configure_optimizers()
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [*map(id, module.policy.adapters)]


def test_attention_is_plain_on_a_cpu_only_within() -> None:
    before = torch.backends.cuda.flash_sdp_enabled()
    with fast_attention(torch.device("cpu")):
        assert not torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled() == before
    with fast_attention(torch.device("cuda")):
        assert torch.backends.cuda.flash_sdp_enabled() == before
