"""A run's phases on the allocator's model."""

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from t2ifb.diffusion.ledger import Operations
from t2ifb.diffusion.pool import MIB
from t2ifb.diffusion.sampling import Sampler
from t2ifb.learning import fine_tuning, gpu_memory
from t2ifb.learning.cost import LOOK, OPTIMISER, ROUNDING, UPDATE, WEIGHTS, Cost
from t2ifb.learning.exam import Exam
from t2ifb.learning.gpu_memory import pool_size
from t2ifb.learning.gpu_rates import GPUS, Rates, known
from t2ifb.learning.plan_text import Memory, verdict
from t2ifb.learning.refl import ReFL
from t2ifb.learning.refl_savings import Measured
from t2ifb.learning.tuning_module import FineTuningModule
from tests.learning.test_refl_cost import small_run
from tests.learning.tuning_worlds import make_tuning, tune

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


def test_the_pool_of_a_run_is_larger_than_its_peak_and_not_by_much() -> None:
    run = Measured.of(small_run(samples_per_batch=2, on_gpu=True), 2)
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
    noting(Exam, "look", LOOK)
    noting(fine_tuning, "rounding_floor", ROUNDING)
    noting(FineTuningModule, "training_step", UPDATE)
    short = {"rollout": Sampler(2), "sampling": Sampler(2), "method": ReFL([0, 1])}
    tune(make_tuning(epochs=1.5, validate_every=1, **short), tmp_path)
    phases = [phase for phase, _ in itertools.groupby(seen)]
    planned = [phase for phase, _ in itertools.groupby(gpu_memory.LIFE) if phase != OPTIMISER]
    assert phases[: len(planned)] == planned
