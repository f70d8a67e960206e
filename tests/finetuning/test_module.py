"""The loop of every algorithm: figures are means, gradients are limited, settings are checked."""

from typing import Any

import pytest
import torch
from torch import Tensor

from t2ifb.finetuning.draft import DRaFT
from t2ifb.finetuning.module import EMA, FineTuningModule, fast_attention
from t2ifb.finetuning.refl import ReFL
from tests.finetuning.method_parts import ALGORITHMS, BATCH, assert_alike, gradient, make_module

METHOD = ReFL([1, 2], 2)


@pytest.fixture(scope="module")
def updated() -> FineTuningModule:
    """A module after one update."""
    module = make_module(METHOD)
    module.training_step(BATCH, 0)
    return module


def test_an_update_starts_from_no_gradient(updated: FineTuningModule) -> None:
    updated.training_step(BATCH, 0)
    first = gradient(updated).clone()
    assert float(first.norm()) > 0
    updated.training_step(BATCH, 0)
    assert_alike(gradient(updated), first)


def test_figures_are_means_over_all_samples_since_the_last_time(
    updated: FineTuningModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, logged = updated, dict[str, float]()
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    module.note(reward=torch.tensor([1.0, 2.0]), kl=torch.tensor([4.0]))
    module.note(reward=torch.tensor([6.0]))
    module._log()
    assert logged == {"train/reward": 3.0, "train/kl": 4.0}
    module.note(reward=torch.tensor([5.0]))
    module._log()
    assert logged["train/reward"] == 5.0


@pytest.mark.parametrize("norm", [0.1, 1e9, None])
def test_the_gradient_is_limited_and_no_longer_than_that(updated: FineTuningModule, norm: float | None) -> None:
    module: Any = updated
    for weight in module.policy.adapters:
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
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


def test_settings_that_do_not_fit_are_refused(updated: FineTuningModule) -> None:
    policy = updated.policy
    optimizer = torch.optim.SGD
    with pytest.raises(ValueError, match="micro_batch_size=0 must be at least 1"):
        FineTuningModule(policy, METHOD, optimizer, micro_batch_size=0)
    with pytest.raises(ValueError, match="must lie within the steps"):
        FineTuningModule(policy, ReFL([0, 9]), optimizer)


def test_the_optimiser_has_the_adapters_alone(updated: FineTuningModule) -> None:
    module = updated
    optimizer = module.configure_optimizers()
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [*map(id, module.policy.adapters)]


def test_attention_is_plain_on_a_cpu_only_within() -> None:
    before = torch.backends.cuda.flash_sdp_enabled()
    with fast_attention(torch.device("cpu")):
        assert not torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled() == before
    with fast_attention(torch.device("cuda")):
        assert torch.backends.cuda.flash_sdp_enabled() == before


def test_the_moving_average_is_evaluated_and_exported_and_the_trained_adapters_are_resumed() -> None:
    module, resumed = make_module(ReFL([1, 3])), make_module(ReFL([1, 3]))
    policy = module.policy
    policy.average(EMA, 0.5)  # a copy at first
    first = [weight.detach().clone() for weight in policy.adapters]
    for weight in policy.adapters:
        weight.data = weight.data + 1
    policy.average(EMA, 0.25)
    for copy, before in zip(policy.copies[EMA], first, strict=True):
        torch.testing.assert_close(copy, 0.25 * before + 0.75 * (before + 1))
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    averaged = sorted(float(copy.sum()) for copy in policy.copies[EMA])
    assert sorted(float(weight.sum()) for weight in checkpoint["state_dict"].values()) == pytest.approx(averaged)
    for weight, before in zip(policy.adapters, first, strict=True):
        assert torch.equal(weight, before + 1)  # the trained ones are in place again
    resumed.on_load_checkpoint(checkpoint)
    for one, other in zip(resumed.policy.adapters, policy.adapters, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(resumed.policy.copies[EMA], policy.copies[EMA], strict=True):
        assert torch.equal(one, other)
    with module._evaluated():
        assert all(torch.equal(w, c) for w, c in zip(policy.adapters, policy.copies[EMA], strict=True))


@pytest.mark.parametrize("name", ["refl", "own pairs", "nft", "given pairs"])
def test_another_number_of_processes_continues_what_does_not_depend_on_it(name: str) -> None:
    module, resumed = make_module(ALGORITHMS[name]), make_module(ALGORITHMS[name])
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    checkpoint["processes"] = 2
    if name in ("own pairs", "nft"):
        with pytest.raises(ValueError, match="samples of its own: resume with 2 processes, not 1"):
            resumed.on_load_checkpoint(checkpoint)
    else:
        resumed.on_load_checkpoint(checkpoint)


def moved(method: Any, saving: bool) -> list[Tensor]:
    """How far two updates move the adapters and their moving average."""
    module = make_module(method, micro_batch_size=1 if saving else None)
    start = torch.cat([weight.detach().flatten() for weight in module.policy.adapters])
    optimizer, module.ema = torch.optim.SGD(module.policy.adapters, lr=0.1), 0.5
    module.optimizers = lambda: optimizer  # type: ignore[method-assign, assignment, return-value]
    if saving:
        module.policy.model.denoiser.enable_gradient_checkpointing()
    for _ in range(2):
        module.training_step(BATCH, 0)
    ends: list[list[Any]] = [module.policy.adapters, module.policy.copies[EMA]]
    return [torch.cat([weight.detach().flatten() for weight in end]) - start for end in ends]


@pytest.mark.parametrize(
    ("method", "saving"),
    [(ReFL([1, 3], 2), ReFL([1, 3], 2)), (DRaFT(4), DRaFT(4, checkpoint_steps=True))],
    ids=["refl", "draft"],
)
def test_small_parts_and_checkpoints_change_neither_adapters_nor_their_average(method: Any, saving: Any) -> None:
    for found, expected in zip(moved(saving, True), moved(method, False), strict=True):
        assert_alike(found, expected)


@pytest.mark.parametrize("ema", [-0.1, 1.0])
def test_a_decay_outside_its_range_is_refused(ema: float) -> None:
    policy = make_module(ReFL([1, 3])).policy
    with pytest.raises(ValueError, match="ema=.* must be from 0 to below 1"):
        FineTuningModule(policy, ReFL([1, 3]), torch.optim.SGD, ema=ema)
