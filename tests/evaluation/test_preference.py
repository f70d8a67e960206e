"""Preference accuracy and calibration."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2ifb.evaluation.preference import calibration, evaluate_preference

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]


def comparisons(prompts: int, images: int) -> Pairs:
    """Image i of a prompt is better than image j > i."""
    upper = np.triu_indices(images, 1)
    offset = np.repeat(np.arange(prompts), len(upper[0])) * images
    return np.tile(upper[0], prompts) + offset, np.tile(upper[1], prompts) + offset, offset // images


@given(st.integers(1, 5), st.integers(2, 5), st.integers(0, 9999))
def test_it_is_what_a_loop_counts(prompts: int, images: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 4, prompts * images).astype(float)  # with ties
    better, worse, prompt = comparisons(prompts, images)
    result = evaluate_preference(scores, better, worse, prompt)
    right = [scores[i] > scores[j] for i, j in zip(better, worse, strict=True)]
    assert result.accuracy.mean == pytest.approx(np.mean(right))
    assert result.ties == sum(scores[i] == scores[j] for i, j in zip(better, worse, strict=True))
    by_prompt = [np.mean([r for r, p in zip(right, prompt, strict=True) if p == k]) for k in range(prompts)]
    assert result.accuracy_by_prompt.mean == pytest.approx(np.mean(by_prompt))


def test_a_constant_scorer_is_always_wrong() -> None:
    result = evaluate_preference(np.zeros(12), *comparisons(3, 4))
    assert result.accuracy.mean == 0
    assert result.ties == result.comparisons == 18


def test_the_difference_is_paired() -> None:
    pairs = comparisons(40, 4)
    scores = np.random.default_rng(0).normal(size=160)
    a, b = (evaluate_preference(s, *pairs) for s in (scores - np.tile(range(4), 40), scores))
    assert a.difference(b).mean == pytest.approx(a.accuracy.mean - b.accuracy.mean)
    assert a.difference(a).excludes_zero is False
    with pytest.raises(ValueError, match="different comparisons"):
        a.difference(evaluate_preference(scores[:8], *comparisons(2, 4)))


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 4 scores"):
        evaluate_preference([0, 1, np.nan, 2], *comparisons(1, 4))


def test_rewards_that_made_the_preferences_are_calibrated_and_others_are_not() -> None:
    rng = np.random.default_rng(0)
    rewards = rng.normal(0, 2, 40_000)
    first, second = np.arange(0, 40_000, 2), np.arange(1, 40_000, 2)
    prefers_first = rng.random(20_000) < 1 / (1 + np.exp(rewards[second] - rewards[first]))
    better, worse = np.where(prefers_first, first, second), np.where(prefers_first, second, first)
    assert calibration(rewards, better, worse).error < 0.02
    assert calibration(4 * rewards, better, worse).error > 0.1


def test_the_orientation_is_drawn_at_random() -> None:
    result = calibration(np.array([1.0, 0.0]), np.zeros(4000, int), np.ones(4000, int))
    assert result.count.sum() == 4000
    assert len(result.count) == 2
    assert result.count.min() > 1800
