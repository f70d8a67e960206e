"""Bootstrap intervals against an independent implementation and closed forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from t2ifb.evaluation.statistics import Interval, bootstrap_interval, bootstrap_ratio, paired_difference


def test_the_interval_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).gamma(2, size=120)
    ours = bootstrap_interval(values, seed=1, resamples=20_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=2).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [bootstrap_interval(rng.normal(0.3, 1, 60), seed=i, resamples=400) for i in range(300)]
    assert 0.88 < np.mean([i.low <= 0.3 <= i.high for i in intervals]) < 0.98


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.integers(0, 99))
def test_it_is_ordered_and_repeats_itself(values: list[float], seed: int) -> None:
    interval = bootstrap_interval(values, seed, resamples=50)
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9
    assert interval == bootstrap_interval(values, seed, resamples=50)


def test_a_ratio_weighs_prompts_by_their_comparisons() -> None:
    assert bootstrap_ratio([1, 9], [1, 9], seed=0).mean == 1
    assert bootstrap_ratio([0, 9], [1, 9], seed=0).mean == pytest.approx(0.9)


def test_prompts_without_comparisons_change_nothing_and_nothing_gives_nan() -> None:
    assert bootstrap_ratio([1, 2, 0], [2, 2, 0]).mean == pytest.approx(0.75)
    assert np.isnan(bootstrap_ratio([0.0], [0.0]).mean)


def test_a_paired_difference_is_narrower_than_the_two_intervals() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=200)
    a, b = shared + 0.1 + 0.05 * rng.normal(size=200), shared + 0.05 * rng.normal(size=200)
    difference = paired_difference(a, b)
    assert difference.excludes_zero
    assert difference.high - difference.low < 0.2 * (bootstrap_interval(a).high - bootstrap_interval(a).low)


def test_equal_scorers_differ_by_exactly_zero() -> None:
    assert paired_difference([0.2, 0.4], [0.2, 0.4]) == Interval(0, 0, 0)
    assert not paired_difference([0.2, 0.4], [0.2, 0.4]).excludes_zero


def test_wrong_shapes_and_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="one value per prompt"):
        bootstrap_interval(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="same prompts"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval([1.0], level=95)
