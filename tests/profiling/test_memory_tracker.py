"""Counting memory and operations, on small computations whose needs are known."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from t2ifb.profiling.memory_tracker import WORK, ActivationBytes, MemoryTracker, Operations, bytes_of, tensors_of

KB = 1000


def block(device: str) -> torch.Tensor:
    """One kilobyte."""
    return torch.ones(250, device=device)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_peak_is_that_of_living_tensors(device: str) -> None:
    with MemoryTracker(device) as tracker:
        first = block(device)
        second = first + first
        assert tracker.total == 2 * KB
        del first
        assert tracker.total == KB
        third = second * 2
        third.mul_(3)  # in place, and a view: nothing new
        view = third.view(10, 25)
        assert tracker.total == 2 * KB
        del second, third, view
        assert tracker.total == 0
    assert tracker.peak == 2 * KB
    assert tracker.at_peak == {WORK: 2 * KB}
    assert tracker.events == [(0, KB), (1, KB), (0, -KB), (2, KB), (1, -KB), (2, -KB)]


def test_what_is_freed_after_the_context_is_not_counted() -> None:
    with MemoryTracker() as tracker:
        kept = block("meta")
    del kept
    assert tracker.events == [(0, KB)] and tracker.total == KB


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_activations_are_freed_by_the_backward_pass(device: str) -> None:
    network = nn.Sequential(*[nn.Sequential(nn.Linear(250, 250), nn.Tanh()) for _ in range(4)]).to(device)
    with MemoryTracker(device) as tracker:
        tracker.adopt("weights", tensors_of(network))
        weights = tracker.total
        loss = network(block(device)).sum()
        held = tracker.total - weights
        loss.backward()
    assert weights == bytes_of(tensors_of(network)) == 4 * 251 * KB
    assert 4 * KB <= held <= 5 * KB + 100
    assert tracker.live["weights"] == weights
    assert tracker.total - 2 * weights <= 100  # the gradients are as large; the loss is left
    assert 2 * weights <= tracker.peak <= 2 * weights + 10 * KB


def test_what_a_network_allocates_is_its_part() -> None:
    one, other = nn.Linear(250, 250, device="meta"), nn.Linear(250, 500, device="meta")
    with torch.no_grad(), MemoryTracker() as tracker, tracker.watching({"one": [one], "other": [other]}):
        tracker.adopt("weights", tensors_of(one, other))
        with tracker.within("input"):
            values = block("meta")
        found = [one(values), other(values)]
        assert (tracker.live["input"], tracker.live["one"], tracker.live["other"]) == (KB, KB, 2 * KB)
        assert WORK not in tracker.live
        tracker.restart()
        assert (tracker.operations.total, tracker.events, tracker.peak) == (0, [], tracker.total)
        del found
    assert not one._forward_hooks
    assert not one._forward_pre_hooks


def test_operations_are_counted_as_torch_counts_them() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(5), nn.ReLU())
    images = torch.randn(2, 3, 9, 9, requires_grad=True)
    network(images)
    with FlopCounterMode(display=False) as theirs:
        network(images).sum().backward()
    with MemoryTracker("cpu") as ours:
        network(images).sum().backward()
    assert ours.operations == Operations(single=theirs.get_total_flops())
    assert ours.operations.total > 0
    with MemoryTracker() as half:
        torch.ones(2, 3, dtype=torch.bfloat16, device="meta") @ torch.ones(3, 4, dtype=torch.bfloat16, device="meta")
    assert half.operations == Operations(half=2 * 2 * 3 * 4)


def test_what_is_kept_is_counted_once_and_not_kept() -> None:
    network = nn.Sequential(nn.Linear(250, 250), nn.Tanh()).requires_grad_(False)
    values = torch.ones(1, 250, requires_grad=True)
    with MemoryTracker("cpu") as tracker:
        tracker.adopt("weights", tensors_of(network))
        with ActivationBytes(tensors_of(network)) as saved:
            result = network(values)
            both = result * result  # the same memory as the result of tanh
        assert saved.total == KB
        del result, both
        assert tracker.live[WORK] == 0
