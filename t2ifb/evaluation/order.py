"""Rank correlation: Kendall's tau, and agreement between scorers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from t2ifb.evaluation.statistics import Interval, bootstrap_interval

Index = NDArray[np.int64]


def kendall_tau_b(
    scores: ArrayLike, ranks: ArrayLike, prompt_of_image: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Kendall's tau-b of scores against ranks, per prompt.

    tau_b = (C - D) / sqrt((C + D + X) (C + D + Y)) over all pairs of a prompt's images: C concordant and D discordant
    pairs, X tied in the ranks only, Y tied in the scores only (M. G. Kendall, "The treatment of ties in ranking
    problems", Biometrika 33, 1945). 1 is the annotators' order, -1 its reverse.

    A prompt whose ranks are all tied has no order and is excluded. If a scorer gives all images of a prompt the same
    score, tau is 0 / 0 and counts as 0, so that undecided scores gain nothing.

    Args:
        scores: (N,), higher is better.
        ranks: (N,), 1 is best.
        prompt_of_image: (N,), index of the prompt, from 0.

    Returns:
        (P,) tau of each prompt, and (P,) whether its ranks have an order. Without an order tau is 0.
    """
    score, rank, prompt = np.asarray(scores), np.asarray(ranks), np.asarray(prompt_of_image, np.int64)
    first, second = pairs_within(prompt)
    by_score = np.sign(score[first] - score[second])
    by_rank = np.sign(rank[second] - rank[first])
    prompts = int(prompt.max(initial=-1)) + 1

    def total(values: NDArray[np.generic]) -> NDArray[np.float64]:
        return np.bincount(prompt[first], values.astype(np.float64), prompts).astype(np.float64)

    below = np.sqrt(total(by_score != 0) * total(by_rank != 0))
    return total(by_score * by_rank) / np.where(below > 0, below, 1), total(by_rank != 0) > 0


def mean_kendall_tau(
    scores: ArrayLike, ranks: ArrayLike, prompt_of_image: ArrayLike, text_of_prompt: ArrayLike, seed: int = 0
) -> Interval:
    """Mean of `kendall_tau_b` over rankings that have an order, with its bootstrap interval over prompts.

    Args:
        scores: (N,).
        ranks: (N,), 1 is best.
        prompt_of_image: (N,), index of the ranking, from 0 to P - 1.
        text_of_prompt: (P,), index of the ranking's text. Rankings of one text are averaged first.
        seed: Seed of the bootstrap.
    """
    tau, ordered = kendall_tau_b(scores, ranks, prompt_of_image)
    text = np.asarray(text_of_prompt, np.int64)[ordered]
    counts = np.bincount(text)
    return bootstrap_interval((np.bincount(text, tau[ordered]) / np.maximum(counts, 1))[counts > 0], seed)


def pairs_within(prompt_of_image: Index) -> tuple[Index, Index]:
    """All pairs of images with the same prompt, each once, as two index arrays with first < second."""
    order = np.argsort(prompt_of_image, kind="stable")
    sizes = np.bincount(prompt_of_image) if len(prompt_of_image) else np.empty(0, np.int64)
    starts = np.cumsum(sizes) - sizes
    found = [np.array(np.triu_indices(size, 1)) + start for size, start in zip(sizes, starts, strict=True)]
    first, second = np.concatenate([np.empty((2, 0), np.int64), *found], axis=1)
    return order[first], order[second]


def agreement(scores: Sequence[ArrayLike], better: ArrayLike, worse: ArrayLike) -> NDArray[np.float64]:
    """Share of comparisons on which two scorers agree, for all pairs of scorers.

    A comparison that only one scorer leaves tied is a disagreement; one that both leave tied is an agreement.

    Args:
        scores: S arrays (N,).
        better: (C,), index of one image of each comparison.
        worse: (C,), index of the other image.

    Returns:
        (S, S), symmetric, 1 on the diagonal; NaN without comparisons.
    """
    first, second = np.asarray(better, np.int64), np.asarray(worse, np.int64)
    if not len(first):
        return np.full((len(scores), len(scores)), np.nan)
    signs = np.array([np.sign(np.asarray(score)[first] - np.asarray(score)[second]) for score in scores])
    return np.array([[(one == other).mean() for other in signs] for one in signs])
