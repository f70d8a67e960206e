"""Updates with NaN or infinity are skipped and counted, and too many stop the run."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule
from torch import Tensor, nn

from t2ifb.training.nan_guard import MOST_IN_A_ROW, NanGuard


class Two(LightningModule):
    """Two weights with gradients, and what a callback sees of the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.ones(2)) for _ in range(2))
        self.terms: dict[str, Tensor] = {}
        self.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
        self.make(1.0, 1.0)

    def make(self, first: float, second: float) -> None:
        for weight, value in ((self.first, first), (self.second, second)):
            weight.grad = torch.tensor([1.0, value])


def trainer(step: int = 0, scaler: Any = None, others: bool | None = None) -> Any:
    several = SimpleNamespace(reduce_boolean_decision=lambda broken, all: broken or others)
    return SimpleNamespace(
        global_step=step,
        world_size=1 if others is None else 2,
        strategy=several,
        precision_plugin=SimpleNamespace(scaler=scaler),
    )


def update(guard: NanGuard, module: Two, loss: float = 1.0, **options: Any) -> bool:
    """One update as Lightning drives it; whether the optimiser had a gradient to take."""
    seen: Any = trainer(**options)
    guard.on_train_batch_start(seen, module)
    guard.on_before_backward(seen, module, torch.tensor(loss))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    guard.on_before_optimizer_step(seen, module, optimizer)
    guard.on_train_batch_end(seen, module)
    return all(weight.grad is not None for weight in module.parameters())


def test_a_finite_update_is_left_alone() -> None:
    guard, module = NanGuard(), Two()
    assert update(guard, module)
    assert (guard.skipped, guard.overflowed, guard.first) == (0, 0, None)
    torch.testing.assert_close(module.second.grad, torch.ones(2))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_broken_gradient_is_dropped_and_its_weight_is_named(value: float) -> None:
    guard, module = NanGuard(), Two()
    module.make(1.0, value)
    assert not update(guard, module, step=3)
    assert (guard.skipped, guard.first) == (1, "the gradient of second at step 3")


def test_errors_are_counted_on_after_a_resume() -> None:
    counted = {"skipped": 3, "first": "the loss at step 1", "overflowed": 2, "in_a_row": 1}
    guard = NanGuard(most=4)
    guard.load_state_dict(counted)
    assert not update(guard, Two(), loss=math.nan, step=7)
    assert guard.state_dict() == counted | {"skipped": 4}
    with pytest.raises(ValueError, match="5 updates .* the first was the loss at step 1"):
        update(guard, Two(), loss=math.nan, step=8)


def test_large_gradients_of_opposite_sign_are_no_error() -> None:
    guard, module = NanGuard(), Two()
    module.make(3e38, -3e38)
    assert update(guard, module) and guard.skipped == 0
    module.make(3e38, 3e38)  # their sum overflows, and each is finite
    assert update(guard, module) and guard.skipped == 0


@pytest.mark.parametrize(
    ("terms", "name"),
    [({}, "loss"), ({"reward": [1.0, math.nan], "kl": [math.nan, 0.0]}, "reward"), ({"kl": [0.0, 1.0]}, "loss")],
)
def test_a_broken_loss_is_named_by_its_first_broken_term(terms: dict[str, list[float]], name: str) -> None:
    guard, module = NanGuard(), Two()
    module.terms = {key: torch.tensor(values) for key, values in terms.items()}
    assert not update(guard, module, loss=math.nan, step=2)
    assert guard.first == f"the {name} at step 2"
    module.make(1.0, 1.0)
    assert update(guard, module, step=3)  # the next one is not blamed for it
    assert guard.skipped == 1


def test_too_many_stop_the_run_and_the_first_is_named() -> None:
    guard, module = NanGuard(most=2), Two()
    for step in range(2):
        module.make(math.nan, 1.0)
        update(guard, module, step=step)
    module.make(1.0, math.nan)
    with pytest.raises(ValueError, match="3 updates had a NaN .* first was the gradient of first at step 0"):
        update(guard, module, step=9)


def test_all_processes_skip_together() -> None:
    guard, module = NanGuard(), Two()
    assert not update(guard, module, others=True)
    assert (guard.skipped, guard.first) == (1, "the loss of another process at step 0")
    module.make(1.0, 1.0)
    assert update(guard, module, others=False) and guard.skipped == 1


class Scaler:
    """A loss scale that falls after each call, as it does after an overflow."""

    def __init__(self, scale: float, factor: float) -> None:
        self.scale, self.factor, self.calls = scale, factor, 0

    def get_scale(self) -> float:
        self.calls += 1
        if self.calls % 2 == 0:
            self.scale *= self.factor
        return self.scale


@pytest.mark.filterwarnings("ignore:update .* overflowed")
def test_overflows_are_counted_apart_and_too_many_in_a_row_stop_the_run() -> None:
    guard, module = NanGuard(), Two()
    update(guard, module, scaler=Scaler(2.0**40, 0.5))
    update(guard, module, scaler=Scaler(2.0**40, 1.0))
    assert (guard.overflowed, guard.in_a_row, guard.skipped) == (1, 0, 0)
    falling = Scaler(2.0**40, 0.5)
    with pytest.raises(ValueError, match=f"{MOST_IN_A_ROW + 1} consecutive updates overflowed"):
        for _ in range(2 * MOST_IN_A_ROW):
            update(guard, module, scaler=falling)
    assert guard.overflowed == 1 + MOST_IN_A_ROW + 1
    with pytest.raises(ValueError, match="the loss scale fell to 0.0019"):
        update(NanGuard(), module, scaler=Scaler(2.0**-8, 0.5))


def test_a_broken_loss_is_no_overflow_and_its_gradients_are_left_to_the_scaler() -> None:
    guard, module = NanGuard(), Two()
    assert update(guard, module, loss=math.nan, scaler=Scaler(2.0**40, 0.5))
    assert (guard.skipped, guard.overflowed) == (1, 0)


def test_counters_survive_a_resume() -> None:
    guard, module = NanGuard(most=5), Two()
    module.make(math.nan, 1.0)
    update(guard, module, step=4)
    again = NanGuard(most=5)
    again.load_state_dict(guard.state_dict())
    assert again.state_dict() == guard.state_dict()
    assert (again.skipped, again.first) == (1, "the gradient of first at step 4")
