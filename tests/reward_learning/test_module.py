"""The reward module: the mean over all comparisons, for any share, and repeatable dropout."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from t2ifb.data.batches import RewardBatch
from t2ifb.reward_learning.module import RewardModule, dropout_seed, seed_noise


class Head(nn.Module):
    """A linear reward of both embeddings, with dropout if a test wants it."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.weight, self.dropout = nn.Linear(6, 1, bias=False), nn.Dropout(dropout)

    def forward(self, images: Tensor, prompts: Tensor) -> Tensor:
        return self.weight(self.dropout(torch.cat([images, prompts], 1))).squeeze(1)


def batch(total: int | None = None, images: int = 4) -> RewardBatch:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(2, images, 3, generator=generator)
    pairs = torch.tensor([[0, 1], [2, 0], [2, 3]][: max(0, images - 1)], dtype=torch.long).reshape(-1, 2)
    index = torch.arange(images)
    return RewardBatch(
        *embeddings, pairs[:, 0], pairs[:, 1], torch.zeros(len(pairs), dtype=torch.long), index,
        len(pairs) if total is None else total,
    )  # fmt: skip


def make(head: nn.Module | None = None, world_size: int = 1, step: int = 0, rank: int = 0, seed: int = 0) -> Any:
    torch.manual_seed(0)
    module: Any = RewardModule(head or Head(), partial(torch.optim.SGD, lr=1.0), seed)
    module.logged = {}
    module.log = lambda name, value, **_: module.logged.update({name: torch.as_tensor(value).item()})
    module._trainer = SimpleNamespace(
        world_size=world_size, global_step=step, global_rank=rank, log_every_n_steps=1, strategy=None
    )
    return module


def test_the_loss_is_the_mean_of_equation_4_over_the_comparisons() -> None:
    module, some = make(), batch()
    rewards = module.head(some.images, some.prompts)
    expected = -logsigmoid(rewards[some.better] - rewards[some.worse]).mean()
    torch.testing.assert_close(module.training_step(some, 0), expected)
    assert module.logged["train/loss"] == pytest.approx(expected.item())
    right = (rewards[some.better] > rewards[some.worse]).float().mean()
    assert module.logged["train/accuracy"] == pytest.approx(float(right))


def test_shares_of_processes_average_to_the_loss_of_the_whole_batch() -> None:
    """A share is an empty one too; Lightning averages what it is given over the processes."""
    whole = make().training_step(batch(), 0)
    shares = [make(world_size=2).training_step(batch(total=3, images=images), 0) for images in (4, 0)]
    torch.testing.assert_close(torch.stack(shares).mean(), whole)
    assert shares[1] == 0 and shares[1].requires_grad


def test_ties_are_wrong_and_a_validation_is_weighted_by_comparisons() -> None:
    module = make()
    with torch.no_grad():
        module.head.weight.weight.zero_()
    module.validation_step(batch(), 0)
    module.on_validation_epoch_end()
    assert module.logged == {"val/loss": pytest.approx(0.693147, abs=1e-5), "val/accuracy": 0}
    trained = make()
    for some in (batch(), batch(images=2)):
        trained.validation_step(some, 0)
    trained.on_validation_epoch_end()
    losses = []
    for some in (batch(), batch(images=2)):
        better, worse = trained.compare(some)
        losses.append(-logsigmoid(better - worse))
    assert trained.logged["val/loss"] == pytest.approx(torch.cat(losses).mean().item(), abs=1e-6)
    assert [float(metric.compute()) for metric in (trained.loss_sum, trained.right, trained.asked)] == [0, 0, 0]


def test_small_weights_change_no_mean_of_a_validation() -> None:
    logged = []
    for weight in (0.01, 1.0):
        module, some = make(), batch()
        votes = {"shares": torch.ones(len(some.better)), "weights": torch.full((len(some.better),), weight)}
        module.validation_step(replace(some, **votes), 0)
        module.on_validation_epoch_end()
        logged.append(module.logged)
    assert logged[0] == pytest.approx(logged[1])
    assert logged[1]["val/loss"] > 0


def test_dropout_is_a_function_of_seed_step_and_rank() -> None:
    def loss(**where: int) -> float:
        torch.manual_seed(0)
        return make(Head(0.5), **where).train().training_step(batch(), 0).item()

    assert loss() == loss()
    assert len({loss(), loss(step=1), loss(seed=1), loss(rank=1)}) == 4


def test_seeds_of_different_places_differ_and_fit_a_generator() -> None:
    places = [(seed, step, rank) for seed in (0, 1, 2**40) for step in (0, 1, 10**6) for rank in (0, 1, 7)]
    seeds = [dropout_seed(*place) for place in places]
    assert len(set(seeds)) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeding_is_that_of_torch_on_the_cpu() -> None:
    seed_noise(5, torch.device("cpu"))
    found = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), found)


def test_embeddings_pass_as_they_are_without_an_encoder_and_the_head_alone_is_trained() -> None:
    module, some = make(), batch()
    images, prompts = module.embed(some.images, some.prompts)
    assert images is some.images and prompts is some.prompts
    (group,) = module.configure_optimizers().param_groups
    assert [id(weight) for weight in group["params"]] == [id(weight) for weight in module.head.parameters()]
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["state_dict"].keys() == module.state_dict().keys()
