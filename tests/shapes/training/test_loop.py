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


def test_the_average_has_the_models_own_statistics_of_batch_normalisation(tmp_path: Path) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    average = fit(
        "norm", model, lambda step: model(5 + torch.randn(64, 3, generator=generator(step))).square().mean(), tmp_path,
        steps=60, learning_rate=0.01, ema_decay=0.9,
    )  # fmt: skip
    assert isinstance(average, nn.Sequential)
    assert average is not model
    assert torch.equal(average[0].running_mean, model[0].running_mean)
    torch.testing.assert_close(average[0].running_mean, torch.full((3,), 5.0), atol=0.5, rtol=0)
