"""Kendall's tau and agreement against plain loops, scipy and values worked out by hand."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from t2ifb.evaluation.order import agreement, kendall_tau_b, mean_kendall_tau, pairs_within


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
