"""The allocator's model on sequences whose segments follow from the rules in `CUDACachingAllocator.cpp`."""

import itertools
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from t2ifb.diffusion.sampling import Sampler
from t2ifb.finetuning import run as finetuning_run
from t2ifb.finetuning.evaluator import Evaluator
from t2ifb.finetuning.module import FineTuningModule
from t2ifb.finetuning.refl import ReFL
from t2ifb.profiling import gpu_memory
from t2ifb.profiling.cost import LOOK, OPTIMISER, ROUNDING, UPDATE, WEIGHTS, Cost
from t2ifb.profiling.gpu_memory import MIB, TOLERANCE, CachingAllocator, PoolExhausted, pool_size, smallest_capacity
from t2ifb.profiling.memory_tracker import Operations
from t2ifb.profiling.report import GPUS, Memory, Rates, known, verdict
from t2ifb.profiling.savings import MemoryEstimate
from tests.finetuning.tuning_worlds import make_tuning, tune
from tests.profiling.test_savings import small_run


def test_sizes_are_rounded_and_small_ones_share_segments() -> None:
    allocator = CachingAllocator()
    for key in range(4096):
        allocator.allocate(key, 1)
    assert (allocator.allocated, allocator.reserved) == (4096 * 512, 2 * MIB)
    allocator.allocate("one more", 513)
    assert (allocator.allocated, allocator.reserved) == (4098 * 512, 4 * MIB)


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (11 * MIB, 12 * MIB),
        (300 * MIB + 1, 302 * MIB),
    ],
)
def test_segments(size: int, segment: int) -> None:
    allocator = CachingAllocator()
    allocator.allocate(0, size)
    assert allocator.reserved == segment


def test_a_large_block_is_split_if_more_than_a_megabyte_is_left() -> None:
    for size, reserved in ((18 * MIB, 20 * MIB), (19 * MIB, 40 * MIB)):
        allocator = CachingAllocator()
        allocator.allocate("whole", 20 * MIB)
        allocator.free("whole")
        allocator.allocate("first", size)
        allocator.allocate("rest", 2 * MIB)  # what is left after 18 MB holds it
        assert allocator.reserved == reserved


def test_the_smallest_free_block_that_fits_is_taken() -> None:
    allocator = CachingAllocator()
    for key, size in (("large", 60), ("middle", 40), ("small", 20)):
        allocator.allocate(key, size * MIB)
    for key in ("large", "small", "middle"):
        allocator.free(key)
    allocator.allocate("a", 30 * MIB)  # out of the middle one
    allocator.allocate("b", 60 * MIB)
    allocator.allocate("c", 20 * MIB)
    allocator.allocate("d", 10 * MIB)
    assert allocator.reserved == 120 * MIB == allocator.allocated


@pytest.mark.parametrize("order", ["abc", "acb", "bac", "bca", "cab", "cba"])
def test_neighbours_that_are_free_become_one(order: str) -> None:
    allocator = CachingAllocator()
    allocator.allocate("abc", 60 * MIB)
    allocator.free("abc")
    for key in "abc":
        allocator.allocate(key, 20 * MIB)
    for key in order:
        allocator.free(key)
    allocator.allocate("abc", 60 * MIB)
    assert (allocator.reserved, allocator.peak_reserved) == (60 * MIB, 60 * MIB)


def test_only_segments_that_are_free_as_a_whole_are_given_back() -> None:
    allocator = CachingAllocator()
    allocator.allocate("whole", 40 * MIB)
    allocator.allocate("split", 40 * MIB)
    allocator.free("split")
    allocator.allocate("part", 20 * MIB)
    allocator.free("whole")
    allocator.empty_cache()
    assert (allocator.reserved, allocator.peak_reserved, allocator.allocated) == (40 * MIB, 80 * MIB, 20 * MIB)
    allocator.allocate("rest", 20 * MIB)
    assert allocator.reserved == 40 * MIB


def test_the_cache_is_given_back_before_memory_is_out() -> None:
    allocator = CachingAllocator(capacity=100 * MIB)
    allocator.allocate("a", 60 * MIB)
    allocator.free("a")
    allocator.allocate("b", 80 * MIB)  # no cached block is large enough
    assert allocator.reserved == 80 * MIB
    with pytest.raises(PoolExhausted):
        allocator.allocate("c", 30 * MIB)
    allocator.allocate("c", 20 * MIB)


def test_fragments_cost_memory() -> None:
    """Every other block is free, and none is large enough: half of the pool cannot be used."""

    def replay(allocator: CachingAllocator) -> None:
        allocator.allocate("all", 400 * MIB)
        allocator.free("all")
        for key in range(40):
            allocator.allocate(key, 10 * MIB)
        for key in range(0, 40, 2):
            allocator.free(key)
        allocator.allocate("large", 200 * MIB)

    assert smallest_capacity(replay) == 600 * MIB


def test_the_smallest_capacity_is_between_what_lives_and_what_is_cached() -> None:
    draw = random.Random(0)
    events: list[tuple[int, int]] = []
    alive: list[int] = []
    for key in range(2000):
        events.append((key, draw.choice([300, 70_000, 2 * MIB, 9 * MIB, 33 * MIB])))
        alive.append(key)
        while len(alive) > draw.randint(5, 40):
            events.append((alive.pop(draw.randrange(len(alive))), 0))

    def replay(allocator: CachingAllocator) -> None:
        for key, size in events:
            if size:
                allocator.allocate(key, size)
            else:
                allocator.free(key)

    unlimited = CachingAllocator()
    replay(unlimited)
    found = smallest_capacity(replay)
    assert unlimited.peak_allocated <= found <= unlimited.peak_reserved
    replay(CachingAllocator(found))
    with pytest.raises(PoolExhausted):
        replay(CachingAllocator(found - TOLERANCE))
    for key in range(2000):
        unlimited.free(key)
    unlimited.empty_cache()
    assert (unlimited.allocated, unlimited.reserved) == (0, 0)


NONE = Operations()
WEIGHT = [(0, 100 * MIB)]
UPDATE_EVENTS = [(1, 200 * MIB), (2, 20 * MIB), (1, -200 * MIB)]  # 2 is a gradient: it lives on
LOOK_EVENTS = [(1, 260 * MIB), (1, -260 * MIB)]


def pool(**phases: list[tuple[int, int]]) -> int:
    given = {WEIGHTS: WEIGHT, UPDATE: UPDATE_EVENTS, OPTIMISER: [], LOOK: LOOK_EVENTS, ROUNDING: [], **phases}
    return pool_size(Cost(0, {}, NONE, NONE, phases=given), Cost(0, {}, NONE, NONE))


def test_phases_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pool() == 380 * MIB  # weights, the last update's gradient and a validation
    monkeypatch.setattr(gpu_memory, "LIFE", (UPDATE, LOOK, UPDATE))
    assert pool() == 380 * MIB  # the cache is given back when memory is short


def test_the_optimisers_state_stays() -> None:
    assert pool(**{OPTIMISER: [(1, 50 * MIB)]}) == 430 * MIB
    fragment = [(1, 50 * MIB), (2, 70 * MIB), (2, -70 * MIB)]  # the gradient is then put into the 70 MB, for good
    assert pool(**{OPTIMISER: fragment}) == 480 * MIB


def test_weights_that_are_replaced_are_not_counted_twice() -> None:
    rounding = [(3, 200 * MIB), (0, -100 * MIB), (4, 100 * MIB), (3, -200 * MIB)]
    assert pool(**{ROUNDING: rounding, LOOK: []}) == 320 * MIB


@pytest.mark.slow
def test_the_pool_of_a_run_is_larger_than_its_peak_and_not_by_much() -> None:
    run = MemoryEstimate.of(small_run(samples_per_batch=2, on_gpu=True), 2)
    assert run.peak <= run.pool < 1.25 * run.peak  # 2 MB and 20 MB segments are much for so small a run
    assert run.needed == run.pool + gpu_memory.LIBRARIES
    on_cpu = replace(run, tuning=replace(run.tuning, on_gpu=False))
    assert on_cpu.needed == on_cpu.pool == run.peak


def test_seconds_by_precision() -> None:
    rates = Rates(half=100.0, single=10.0)
    assert rates.seconds(Operations(half=400.0, single=70.0)) == pytest.approx((10.0, 10.0))
    names = ("Tesla T4", "NVIDIA A100-SXM4-80GB", "NVIDIA GeForce RTX 3090", "NVIDIA L40S", "NVIDIA H100 80GB HBM3")
    assert [known(name) for name in names] == ["T4", "A100", "RTX 3090", "L40S", "H100"]
    assert known("NVIDIA A10G") is None
    assert all(each.half > each.single for each in GPUS.values())


def test_fits_tight_and_does_not_fit() -> None:
    gb = gpu_memory.GB
    cost = Cost(int(14 * gb), {}, NONE, NONE)
    run: Any = SimpleNamespace(pool=14.5 * gb, needed=15.5 * gb, update=cost, judging=cost)
    answers = {size: verdict(run, Memory(size * gb, "memory_gb", on_gpu=True)) for size in (17, 16, 15)}
    assert answers[17].endswith("It fits into 17.00 GB (memory_gb), with 1.50 GB free.")
    assert answers[16].endswith("It is tight in 16.00 GB (memory_gb): 0.50 GB are free, but 5%, 0.80 GB, should be.")
    assert answers[15].endswith("It does not fit into 15.00 GB (memory_gb): 0.50 GB are missing.")
    assert "A GPU of at least 16.32 GB leaves 5% free" in verdict(run, None)


def test_a_run_has_these_phases_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def noting(owner: Any, name: str, phase: str) -> None:
        function = getattr(owner, name)

        def noted(*args: Any, **more: Any) -> Any:
            seen.append(phase)
            return function(*args, **more)

        monkeypatch.setattr(owner, name, noted)

    noting(torch.cuda, "empty_cache", "")
    noting(Evaluator, "sample", LOOK)
    noting(finetuning_run, "rounding_floor", ROUNDING)
    noting(FineTuningModule, "training_step", UPDATE)
    short = {"rollout": Sampler(2), "sampling": Sampler(2), "algorithm": ReFL([0, 1])}
    tune(make_tuning(epochs=1.5, validate_every=1, **short), tmp_path)
    phases = [phase for phase, _ in itertools.groupby(seen)]
    planned = [phase for phase, _ in itertools.groupby(gpu_memory.LIFE) if phase != OPTIMISER]
    assert phases[: len(planned)] == planned
