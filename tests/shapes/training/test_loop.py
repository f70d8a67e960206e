"""The training loop of the world."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from t2ifb.shapes.training.loop import fit, generator


class Stopped(Exception):
    """What stands for a kill."""


@pytest.mark.parametrize("stop", [3, 4, 7])
def test_a_training_that_was_stopped_ends_with_the_same_weights(stop: int, tmp_path: Path) -> None:
    def train(folder: Path, stop_at: int | None = None) -> Tensor:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)

        def loss_at(step: int) -> Tensor:
            if step == stop_at:
                raise Stopped
            x = torch.randn(8, 3, generator=generator(0, step))
            return (model(x) - x.sum(1, keepdim=True)).square().mean()

        trained = fit("toy", model, loss_at, folder, steps=10, learning_rate=0.1, ema_decay=0.5, save_every=2)
        return torch.cat([p.flatten() for p in trained.parameters()])

    whole = train(tmp_path / "whole")
    with pytest.raises(Stopped):
        train(tmp_path / "stopped", stop)
    assert torch.equal(train(tmp_path / "stopped"), whole)
