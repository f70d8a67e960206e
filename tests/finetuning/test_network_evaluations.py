"""Network evaluations of updates, against a count by hand."""

from types import SimpleNamespace
from typing import Any

import pytest

from t2ifb.finetuning.draft import DRaFT
from t2ifb.finetuning.network_evaluations import NetworkEvaluations
from t2ifb.finetuning.refl import ReFL
from tests.finetuning.method_parts import BATCH, make_module

LATE = 2
"""The step of the gradient, and hence the steps before it."""


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_an_update_costs_its_calls(guidance_scale: float) -> None:
    module: Any = make_module(ReFL([LATE, LATE]), guidance_scale=guidance_scale)
    logged: dict[str, float] = {}
    module.log = lambda name, value, **_: logged.update({name: value})
    cost, trainer = NetworkEvaluations(), SimpleNamespace(global_step=0, log_every_n_steps=2)
    cost.on_fit_start(trainer, module)  # type: ignore[arg-type]
    branches = 1 if guidance_scale == 1 else 2
    rollout, reference, trained = LATE, 1, 3
    update = len(BATCH.prompts) * branches * (rollout + reference + trained)
    for number in (1, 2):
        module.training_step(BATCH, 0)
        cost.on_before_optimizer_step(trainer, module, None)  # type: ignore[arg-type]
        assert cost.total == number * update
        trainer.global_step += 1
    assert logged["train/network_evaluations"] == 2 * update
    assert "train/network_evaluations" in module.logged  # and so in metrics.csv
    resumed = NetworkEvaluations()
    resumed.load_state_dict(cost.state_dict())
    assert resumed.total == cost.total


def test_a_repeated_call_is_counted_and_differentiated_once() -> None:
    module: Any = make_module(DRaFT(last_steps=LATE, checkpoint_steps=True), guidance_scale=1.0, beta=0.0)
    cost, trainer = NetworkEvaluations(), SimpleNamespace(global_step=0, log_every_n_steps=2)
    cost.on_fit_start(trainer, module)  # type: ignore[arg-type]
    module.training_step(BATCH, 0)
    cost.on_before_optimizer_step(trainer, module, None)  # type: ignore[arg-type]
    before, trained, reference = len(module.policy.schedule) - LATE, 1 + 1 + 2, 1
    assert cost.total == len(BATCH.prompts) * (before + LATE * (trained + reference))


def test_validations_are_not_counted() -> None:
    module: Any = make_module(ReFL([LATE, LATE]))
    cost, trainer = NetworkEvaluations(), SimpleNamespace(global_step=0, log_every_n_steps=2)
    cost.on_fit_start(trainer, module)  # type: ignore[arg-type]
    cost.on_validation_start(trainer, module)  # type: ignore[arg-type]
    module.policy.draw(BATCH)
    cost.on_validation_end(trainer, module)  # type: ignore[arg-type]
    cost.on_before_optimizer_step(trainer, module, None)  # type: ignore[arg-type]
    assert cost.total == 0
    module.policy.draw(BATCH)
    cost.on_before_optimizer_step(trainer, module, None)  # type: ignore[arg-type]
    assert cost.total == len(BATCH.prompts) * 2 * len(module.policy.schedule)
