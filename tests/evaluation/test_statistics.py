"""Bootstrap intervals: right against scipy and closed forms, paired, seeded, honest about nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from t2ifb.evaluation.statistics import (
    Interval,
    bootstrap_interval,
    bootstrap_ratio,
    paired_difference,
    share_interval,
)

VALUES = np.random.default_rng(0).gamma(2.0, size=200)


def test_interval_agrees_with_scipy() -> None:
    mine = bootstrap_interval(VALUES, seed=1, resamples=20_000)
    theirs = stats.bootstrap(
        (VALUES,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert mine.mean == pytest.approx(VALUES.mean())
    assert mine.low == pytest.approx(theirs.low, abs=0.01)
    assert mine.high == pytest.approx(theirs.high, abs=0.01)


def test_interval_of_a_mean_is_the_normal_one_when_there_are_many_prompts() -> None:
    mine = bootstrap_interval(VALUES, level=0.9, resamples=20_000)
    width = 2 * stats.norm.ppf(0.95) * VALUES.std() / np.sqrt(len(VALUES))
    assert mine.high - mine.low == pytest.approx(width, rel=0.03)


def test_ratio_agrees_with_scipy_on_pairs() -> None:
    rng = np.random.default_rng(3)
    count = rng.integers(1, 30, 150)
    right = rng.binomial(count, 0.7)
    mine = bootstrap_ratio(right, count, seed=1, resamples=20_000)
    theirs = stats.bootstrap(
        (right, count),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert mine.mean == pytest.approx(right.sum() / count.sum())
    assert (mine.low, mine.high) == pytest.approx((theirs.low, theirs.high), abs=0.002)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    samples = [bootstrap_interval(rng.normal(size=100), seed=i, resamples=400) for i in range(300)]
    covered = np.mean([interval.low <= 0 <= interval.high for interval in samples])
    assert 0.90 < covered < 0.98


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_interval_lies_within_the_values(values: list[float], seed: int) -> None:
    interval = bootstrap_interval(values, seed, resamples=50)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= interval.low <= interval.high <= max(values) + slack


def test_the_same_seed_draws_the_same_prompts() -> None:
    assert bootstrap_interval(VALUES, seed=5) == bootstrap_interval(VALUES, seed=5)
    assert bootstrap_interval(VALUES, seed=5) != bootstrap_interval(VALUES, seed=6)
    shifted = bootstrap_interval(VALUES + 1, seed=5)
    assert shifted.low == pytest.approx(bootstrap_interval(VALUES, seed=5).low + 1)


def test_pairing_removes_what_both_share() -> None:
    rng = np.random.default_rng(6)
    hard = rng.normal(scale=10, size=100)
    a, b = hard + 0.5 + 0.1 * rng.normal(size=100), hard
    difference = paired_difference(a, b)
    assert difference.excludes_zero
    assert difference.mean == pytest.approx(0.5, abs=0.05)
    assert difference.high - difference.low < 0.1
    opposite = paired_difference(b, a)
    assert (opposite.low, opposite.high) == pytest.approx((-difference.high, -difference.low))


def test_weights_count_a_prompt_as_often_as_it_has_comparisons() -> None:
    difference = paired_difference([1.0, 0.0, np.nan], [0.0, 0.0, 1.0], weights=[3, 1, 0])
    assert difference.mean == pytest.approx(3 / 4)


def test_one_prompt_has_an_interval_without_width() -> None:
    assert bootstrap_interval([0.7]) == Interval(0.7, 0.7, 0.7)


@pytest.mark.parametrize(("top", "bottom"), [([], []), ([0.0, 0.0], [0, 0])])
def test_nothing_to_average_is_nan(top: list[float], bottom: list[float]) -> None:
    interval = bootstrap_ratio(top, bottom)
    assert np.isnan([interval.mean, interval.low, interval.high]).all()
    assert not interval.excludes_zero


def test_prompts_without_comparisons_do_not_break_a_resample() -> None:
    interval = bootstrap_ratio([1, 0, 0, 0], [1, 0, 0, 0])  # many resamples draw only empty prompts
    assert interval == Interval(1, 1, 1)


def test_scaling_keeps_the_order() -> None:
    assert Interval(0.5, 0.4, 0.6).scaled(100) == Interval(50, 40, 60)


def test_what_is_no_list_of_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="one value per prompt"):
        bootstrap_interval(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="one value per prompt"):
        bootstrap_ratio([1, 2], [1])
    with pytest.raises(ValueError, match="same prompts"):
        paired_difference([1, 2], [1])
    with pytest.raises(ValueError, match="level between 0 and 1"):
        bootstrap_interval([1.0], level=95)


def test_a_share_of_few_prompts_has_the_interval_of_clopper_and_pearson() -> None:
    for shares in ([1.0], [0.0] * 4, [1.0, 1.0, 0.0, 1.0, 1.0, 1.0]):
        exact = stats.binomtest(int(sum(shares)), len(shares)).proportion_ci(method="exact")
        found = share_interval(shares)
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    halves = share_interval([0.5, 1.0])
    assert halves.mean == 0.75 and halves.low < 0.5 < halves.high < 1
    assert np.isnan(share_interval([]).mean)
    with pytest.raises(ValueError, match="one share from 0 to 1 per prompt"):
        share_interval([1.5])
