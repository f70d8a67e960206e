"""Preference accuracy and calibration against loops anyone can check."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import kendalltau

from t2ifb.evaluation.metrics import (
    agreement,
    calibration,
    diversity,
    evaluate_preference,
    kendall_tau_b,
    mean_kendall_tau,
    ordered_pairs,
    pairs_within,
)


def plain_tau(scores: np.ndarray, ranks: np.ndarray) -> float:
    """Over all pairs, one after the other."""
    alike = opposite = only_ranks = only_scores = 0
    for i, j in combinations(range(len(scores)), 2):
        by_score, by_rank = scores[i] - scores[j], ranks[j] - ranks[i]
        alike += by_score * by_rank > 0
        opposite += by_score * by_rank < 0
        only_ranks += by_rank == 0 and by_score != 0
        only_scores += by_score == 0 and by_rank != 0
    below = (alike + opposite + only_ranks) * (alike + opposite + only_scores)
    return (alike - opposite) / below**0.5 if below else 0.0


@given(st.integers(0, 10_000))
@settings(max_examples=50)
def test_tau_is_that_of_a_plain_loop_and_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 8, 6)
    prompts = np.repeat(np.arange(6), sizes)
    scores, ranks = rng.integers(0, 5, len(prompts)).astype(np.float32), rng.integers(1, 5, len(prompts))
    tau, ordered = kendall_tau_b(scores, ranks, prompts)
    for number in range(6):
        mine = prompts == number
        assert tau[number] == pytest.approx(plain_tau(scores[mine], ranks[mine]))
        theirs = kendalltau(scores[mine], -ranks[mine]).statistic
        assert tau[number] == pytest.approx(0 if np.isnan(theirs) else theirs)
        assert ordered[number] == (len(set(ranks[mine])) > 1)


@pytest.mark.parametrize(
    ("scores", "ranks", "tau"),
    [
        ([3, 2, 1], [1, 2, 3], 1.0),
        ([1, 2, 3], [1, 2, 3], -1.0),
        ([2, 3, 1], [1, 2, 3], 1 / 3),
        ([3, 2, 1], [1, 1, 2], 2 / 6**0.5),  # C 2, D 0, X 1: 2 / sqrt(3 * 2)
        ([1, 1, 1], [1, 2, 3], 0.0),
    ],
)
def test_tau_of_small_rankings(scores: list[int], ranks: list[int], tau: float) -> None:
    assert kendall_tau_b(scores, ranks, [0, 0, 0])[0][0] == pytest.approx(tau)


def test_the_mean_is_over_prompts_whose_ranks_have_an_order() -> None:
    scores, ranks, prompts = [2, 1, 5, 4, 1, 2, 7], [1, 2, 1, 1, 1, 2, 1], [0, 0, 1, 1, 2, 2, 3]
    assert mean_kendall_tau(scores, ranks, prompts, np.arange(max(prompts) + 1)).mean == pytest.approx((1 - 1) / 2)
    assert np.isnan(mean_kendall_tau([1, 2], [1, 1], [0, 0], [0]).mean)


def test_a_scorer_that_decides_nothing_is_at_zero_and_no_tau_is_lost() -> None:
    assert mean_kendall_tau([5, 5, 2, 1], [1, 2, 1, 2], [0, 0, 1, 1], [0, 1]).mean == pytest.approx(0.5)


def test_pairs_are_within_prompts_and_come_once() -> None:
    first, second = pairs_within(np.array([1, 0, 1, 1, 0]))
    assert {frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)} == {
        frozenset(pair) for pair in [(1, 4), (0, 2), (0, 3), (2, 3)]
    }
    assert len(first) == 4
    assert len(pairs_within(np.empty(0, np.int64))[0]) == 0


def test_agreement_counts_comparisons_that_are_ordered_alike() -> None:
    better, worse = [0, 1, 2], [1, 2, 0]
    up, down, flat = [1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0, 1.0, 3.0]
    matrix = agreement([up, down, flat], better, worse)
    np.testing.assert_allclose(matrix, [[1, 0, 2 / 3], [0, 1, 0], [2 / 3, 0, 1]])
    assert np.isnan(agreement([up, down], [], [])).all()


@given(st.integers(0, 1000))
@settings(max_examples=20)
def test_agreement_is_that_of_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (3, 12)).astype(np.float32)
    better, worse = rng.integers(0, 12, (2, 30))
    matrix = agreement(list(scores), better, worse)
    for a in range(3):
        for b in range(3):
            alike = [
                (scores[a][i] > scores[a][j]) == (scores[b][i] > scores[b][j])
                and (scores[a][i] < scores[a][j]) == (scores[b][i] < scores[b][j])
                for i, j in zip(better, worse, strict=True)
            ]
            assert matrix[a, b] == pytest.approx(np.mean(alike))


def test_rankings_of_one_text_are_one_draw() -> None:
    scores, ranks, prompts = [2, 1, 2, 1, 1, 2], [1, 2, 1, 2, 1, 2], [0, 0, 1, 1, 2, 2]
    assert mean_kendall_tau(scores, ranks, prompts, [0, 1, 2]).mean == pytest.approx(1 / 3)
    assert mean_kendall_tau(scores, ranks, prompts, [0, 0, 1]).mean == pytest.approx(0)


Index = NDArray[np.int64]


def rankings(seed: int, prompts: int = 12) -> tuple[NDArray[np.float64], Index, Index, Index]:
    """Scores with some equal ones, and the comparisons of random rankings with ties."""
    rng = np.random.default_rng(seed)
    better, worse, prompt = [], [], []
    scores: list[float] = []
    for number in range(prompts):
        first, size = len(scores), int(rng.integers(1, 7))
        ranks = rng.integers(1, 5, size)
        scores += rng.integers(0, 4, size).tolist()
        for i in range(size):
            for j in range(size):
                if ranks[i] < ranks[j]:
                    better.append(first + i)
                    worse.append(first + j)
                    prompt.append(number)
    return np.array(scores, float), np.array(better, int), np.array(worse, int), np.array(prompt, int)


@given(st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_accuracy_is_that_of_a_plain_loop(seed: int) -> None:
    scores, better, worse, prompt = rankings(seed)
    if not len(better):
        return
    result = evaluate_preference(scores, better, worse, prompt)
    right, by_prompt, ties = 0, {}, 0
    for i, j, p in zip(better, worse, prompt, strict=True):
        right += scores[i] > scores[j]
        ties += scores[i] == scores[j]
        by_prompt.setdefault(p, []).append(scores[i] > scores[j])
    assert result.accuracy.mean == pytest.approx(right / len(better))
    assert result.accuracy_by_prompt.mean == pytest.approx(np.mean([np.mean(v) for v in by_prompt.values()]))
    assert (result.ties, result.comparisons) == (ties, len(better))
    assert result.right_of_prompt.sum() == right
    assert result.accuracy.low <= result.accuracy.mean <= result.accuracy.high


def test_ties_of_the_scorer_are_wrong() -> None:
    result = evaluate_preference(np.zeros(4), [0, 1], [2, 3], [0, 1])
    assert result.accuracy.mean == 0
    assert result.ties == 2


def test_only_the_order_of_the_scores_matters() -> None:
    scores, better, worse, prompt = rankings(3)
    one = evaluate_preference(scores, better, worse, prompt)
    other = evaluate_preference(np.exp(scores) * 7, better, worse, prompt)
    assert one.accuracy == other.accuracy
    assert one.accuracy_by_prompt == other.accuracy_by_prompt


def test_the_difference_is_paired() -> None:
    scores, better, worse, prompt = rankings(5, prompts=60)
    gold = np.zeros(len(scores))
    np.subtract.at(gold, worse, 1)
    mine = evaluate_preference(scores, better, worse, prompt)
    assert mine.difference(mine).mean == 0
    assert not mine.difference(mine).excludes_zero
    perfect = evaluate_preference(gold, better, worse, prompt)
    difference = perfect.difference(mine)
    assert difference.mean == pytest.approx(perfect.accuracy.mean - mine.accuracy.mean)
    assert difference.excludes_zero
    with pytest.raises(ValueError, match="same rankings"):
        perfect.difference(evaluate_preference(scores, better[:-1], worse[:-1], prompt[:-1]))


def test_no_comparisons_is_nan() -> None:
    result = evaluate_preference([1.0, 2.0], [], [], [])
    assert np.isnan([result.accuracy.mean, result.accuracy.low, result.accuracy_by_prompt.mean]).all()
    assert result.comparisons == result.ties == 0


def test_scores_without_an_order_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 scores are NaN or infinite"):
        evaluate_preference([1.0, np.nan], [0], [1], [0])
    with pytest.raises(ValueError, match="better, worse and prompt of equal length"):
        evaluate_preference([1.0, 2.0], [0], [1, 0], [0])


def drawn(scale: float, seed: int = 0, count: int = 20_000) -> tuple[NDArray[np.float64], Index, Index]:
    """Comparisons by annotators who follow Bradley-Terry exactly, and rewards `scale` times too large."""
    rng = np.random.default_rng(seed)
    reward = rng.normal(size=2 * count)
    first, second = np.arange(count), np.arange(count, 2 * count)
    wins = rng.random(count) < 1 / (1 + np.exp(reward[second] - reward[first]))
    return scale * reward, np.where(wins, first, second), np.where(wins, second, first)


def test_true_rewards_are_calibrated() -> None:
    result = calibration(*drawn(1.0), seed=1)
    assert result.error < 0.02
    np.testing.assert_allclose(result.predicted, result.observed, atol=0.06)
    assert result.count.sum() == 20_000


@pytest.mark.parametrize(("scale", "sign"), [(3.0, -1), (0.3, 1)], ids=["too sure", "too timid"])
def test_wrong_scales_show(scale: float, sign: int) -> None:
    result = calibration(*drawn(scale), seed=1)
    upper = result.predicted > 0.6
    assert (sign * (result.observed - result.predicted)[upper] > 0).all()
    assert result.error > 0.05


def test_orientation_is_random_and_seeded() -> None:
    scores, better, worse = drawn(1.0, count=4000)
    one, same, other = (calibration(scores, better, worse, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.observed, same.observed)
    assert not np.array_equal(one.observed, other.observed)
    share = (one.observed * one.count).sum() / one.count.sum()
    assert share == pytest.approx(0.5, abs=0.03)  # not 1, as if the better one always came first


def test_calibration_stands_extremes() -> None:
    sure = calibration([1e4, -1e4], [0], [1])
    assert sure.error == pytest.approx(0)
    assert sure.count.tolist() == [1]
    nothing = calibration([1.0, 2.0], [], [])
    assert nothing.count.size == 0
    assert np.isnan(nothing.error)


def test_a_graded_truth_decides_pairs_of_one_prompt_beyond_the_margin() -> None:
    better, worse, prompt = ordered_pairs([0.5, 0.51, 0.9, 0.1, 0.4], [0, 0, 0, 1, 1], 0.02)
    assert list(zip(better.tolist(), worse.tolist(), prompt.tolist(), strict=True)) == [(2, 0, 0), (2, 1, 0), (4, 3, 1)]


def test_diversity_is_the_mean_distance_of_a_prompts_images() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0)), dim=2)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    expected = [sum(1 - float(prompt[i] @ prompt[j]) for i, j in pairs) / len(pairs) for prompt in vectors]
    assert diversity(vectors).tolist() == pytest.approx(expected, abs=1e-6)
