"""Sizes, times and the verdict of a plan, in words."""

from types import SimpleNamespace
from typing import Any

import pytest

from t2ifb.profiling.gpu_memory import LIBRARIES, SPARE
from t2ifb.profiling.memory_tracker import Operations
from t2ifb.profiling.report import GPUS, Memory, Rates, fits, flops_text, known, size_text, time_text, verdict


def test_units() -> None:
    assert [size_text(size) for size in (5e4, 9.6e6, 3.98e9)] == ["50 kB", "9.6 MB", "3.98 GB"]
    counts = (4.6e8, 8.04e11, 3.81e13, 3.8e18)
    assert [flops_text(count) for count in counts] == ["0.46 GFLOP", "0.804 TFLOP", "38.1 TFLOP", "3.800 EFLOP"]


def test_times_have_a_unit_that_suits_them() -> None:
    assert [time_text(seconds) for seconds in (0.126, 119, 120, 7199, 7200, 172_799, 172_800)] == [
        "0.13 s", "119.00 s", "2.0 min", "120.0 min", "2.0 h", "48.0 h", "2.0 days",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Tesla T4", "T4"), ("NVIDIA A100-SXM4-80GB", "A100"), ("NVIDIA L40S", "L40S"), ("NVIDIA L4", "L4"),
        ("NVIDIA A10", "A10"), ("NVIDIA GeForce RTX 3090 Ti", "RTX 3090"), ("NVIDIA H200", "H200"), ("T400", None),
    ],
)  # fmt: skip
def test_a_gpu_is_known_by_a_word_of_its_name(name: str, key: str | None) -> None:
    assert known(name) == key


def test_seconds_fall_with_the_rate_and_each_precision_is_apart() -> None:
    half, single = Rates(100.0, 10.0).seconds(Operations(half=400.0, single=70.0))
    assert (half, single) == (400 / (0.4 * 100), 70 / (0.7 * 10))
    assert Rates(200.0, 10.0).seconds(Operations(half=400.0, single=70.0)) == (half / 2, single)
    assert all(rates.half > rates.single > 0 for rates in GPUS.values())


def run(pool: float, needed: float, updates_are_larger: bool = True) -> Any:
    peaks = (2.0, 1.0) if updates_are_larger else (1.0, 2.0)
    update, judging = (SimpleNamespace(peak=peak) for peak in peaks)
    return SimpleNamespace(pool=pool, needed=needed, update=update, judging=judging)


def test_what_has_to_stay_free_is_not_for_the_run() -> None:
    assert Memory(100e9, "x", on_gpu=False).limit == pytest.approx((1 - SPARE) * 100e9)
    assert Memory(100e9, "x", on_gpu=True).limit == pytest.approx((1 - SPARE) * 100e9 - LIBRARIES)
    memory = Memory(10e9, "x", on_gpu=False)
    assert fits(run(memory.limit, 0), memory) and not fits(run(memory.limit + 1, 0), memory)


@pytest.mark.parametrize(
    ("needed", "words"),
    [
        (8e9, "It fits into 10.00 GB (a card), with 2.00 GB free."),
        (9.8e9, "It is tight in 10.00 GB (a card): 0.20 GB are free, but 5%, 0.50 GB, should be."),
        (12e9, "It does not fit into 10.00 GB (a card): 2.00 GB are missing."),
    ],
)
def test_the_verdict_goes_by_what_is_left(needed: float, words: str) -> None:
    text = verdict(run(needed, needed), Memory(10e9, "a card", on_gpu=False))
    assert text == f"The run needs {size_text(needed)}; its peak is in an update. {words}"


def test_without_a_gpu_the_smallest_that_would_do_is_named() -> None:
    text = verdict(run(0, 19e9, updates_are_larger=False), None)
    assert "its peak is in a validation" in text
    assert f"at least {size_text(19e9 / (1 - SPARE))} leaves 5% free" in text
