"""The learning rate falls linearly, also after a resume."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from t2ifb.training.learning_rate import LinearDecay


def trainer_at(step: int, optimizer: torch.optim.Optimizer) -> Any:
    return SimpleNamespace(optimizers=[optimizer], global_step=step, max_steps=4)


def test_it_falls_linearly_to_zero_and_a_resumed_optimiser_goes_on() -> None:
    def optimizer() -> torch.optim.Optimizer:
        weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
        return torch.optim.AdamW([{"params": weights[:1], "lr": 0.8}, {"params": weights[1:], "lr": 0.4}])

    whole, rates = optimizer(), []
    for step in range(4):
        LinearDecay().on_train_batch_start(trainer_at(step, whole), None, None, 0)
        rates.append([group["lr"] for group in whole.param_groups])
        if step == 1:
            resumed = optimizer()
            resumed.load_state_dict(whole.state_dict())
    assert rates == [pytest.approx(each) for each in ([0.8, 0.4], [0.6, 0.3], [0.4, 0.2], [0.2, 0.1])]
    LinearDecay().on_train_batch_start(trainer_at(2, resumed), None, None, 0)
    assert [group["lr"] for group in resumed.param_groups] == rates[2]
