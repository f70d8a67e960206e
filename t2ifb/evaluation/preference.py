"""Preference accuracy: agreement of a scorer with human choices (PAPER, table 1)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from t2ifb.evaluation.statistics import Interval, bootstrap_interval, bootstrap_ratio, paired_difference


@dataclass(frozen=True)
class PreferenceResult:
    """Preference accuracy of one scorer on one set of rankings.

    Attributes:
        accuracy: Share of comparisons in which the better image has the higher score.
        accuracy_by_prompt: Accuracy per prompt, averaged over prompts that have comparisons.
        ties: Number of comparisons with equal scores; they count as wrong.
        comparisons: Number of comparisons.
        right_of_prompt: (P,), correct comparisons per prompt.
        comparisons_of_prompt: (P,), comparisons per prompt.
    """

    accuracy: Interval
    accuracy_by_prompt: Interval
    ties: int
    comparisons: int
    right_of_prompt: NDArray[np.float64]
    comparisons_of_prompt: NDArray[np.float64]

    def difference(self, other: "PreferenceResult", seed: int = 0) -> Interval:
        """Accuracy over comparisons minus the other scorer's, paired over prompts.

        Raises:
            ValueError: The results come from different comparisons.
        """
        count = self.comparisons_of_prompt
        if not np.array_equal(count, other.comparisons_of_prompt):
            raise ValueError("The results come from different comparisons; score both on the same rankings.")
        safe = np.maximum(count, 1)
        return paired_difference(self.right_of_prompt / safe, other.right_of_prompt / safe, count, seed)


def evaluate_preference(
    scores: ArrayLike, better: ArrayLike, worse: ArrayLike, prompt_of_comparison: ArrayLike, seed: int = 0
) -> PreferenceResult:
    """Preference accuracy, with 95 % bootstrap intervals over prompts.

    Args:
        scores: (N,), score of each image.
        better: (C,), index of the preferred image.
        worse: (C,), index of the other image.
        prompt_of_comparison: (C,), index of the prompt, from 0.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: A score is not finite, or the lengths differ.
    """
    score = np.asarray(scores, np.float64)
    first, second, prompt = (np.asarray(index, np.int64) for index in (better, worse, prompt_of_comparison))
    if not first.shape == second.shape == prompt.shape:
        raise ValueError(
            f"Expected better, worse and prompt of equal length, got {first.shape}, {second.shape}, {prompt.shape}."
        )
    if not np.isfinite(score).all():
        raise ValueError(
            f"{(~np.isfinite(score)).sum()} of {len(score)} scores are NaN or infinite; expected finite scores."
        )
    count = np.bincount(prompt).astype(np.float64)
    right = np.bincount(prompt, (score[first] > score[second]).astype(np.float64), len(count)).astype(np.float64)
    asked = count > 0
    return PreferenceResult(
        accuracy=bootstrap_ratio(right, count, seed),
        accuracy_by_prompt=bootstrap_interval(right[asked] / count[asked], seed),
        ties=int((score[first] == score[second]).sum()),
        comparisons=len(first),
        right_of_prompt=right,
        comparisons_of_prompt=count,
    )


def ordered_pairs(
    values: ArrayLike, prompt_of_image: ArrayLike, margin: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Comparisons from graded values: all pairs of images of one prompt that differ by more than `margin`.

    Args:
        values: (N,), ground truth, higher is better.
        prompt_of_image: (N,), index of the prompt, from 0.
        margin: Minimum difference, in units of the values.

    Returns:
        Indices of the better image, the worse image and the prompt, (C,) each.
    """
    value, prompt = np.asarray(values, np.float64), np.asarray(prompt_of_image, np.int64)
    decided = (value[:, None] - value[None] > margin) & (prompt[:, None] == prompt[None])
    better, worse = np.nonzero(decided)
    return better, worse, prompt[better]


@dataclass(frozen=True)
class Calibration:
    """Predicted against observed preference, in bins of equal width over [0, 1].

    Attributes:
        predicted: (B,), mean of σ(Δr) in each non-empty bin.
        observed: (B,), share of the bin's comparisons whose first image was preferred.
        count: (B,), comparisons in the bin.
        error: Expected calibration error, mean of |predicted - observed| weighted by count; NaN without
            comparisons.
    """

    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    count: NDArray[np.int64]
    error: float


def calibration(scores: ArrayLike, better: ArrayLike, worse: ArrayLike, seed: int = 0, bins: int = 10) -> Calibration:
    """Compare σ(r_i - r_j), the Bradley-Terry probability (PAPER eq. 4), with what people preferred.

    The order of the two images is drawn at random. If the first were always the better one, all predictions below one
    would seem underconfident.

    Args:
        scores: (N,) rewards.
        better: (C,), index of the preferred image.
        worse: (C,), index of the other image.
        seed: Seed of the random order.
        bins: Number of bins.
    """
    score = np.asarray(scores, np.float64)
    difference = score[np.asarray(better, np.int64)] - score[np.asarray(worse, np.int64)]
    better_first = np.random.default_rng(seed).random(len(difference)) < 0.5
    predicted = np.exp(-np.logaddexp(0, np.where(better_first, -difference, difference)))
    observed = better_first.astype(np.float64)
    index = np.minimum((predicted * bins).astype(np.int64), bins - 1)
    count = np.bincount(index, minlength=bins)
    kept = count > 0
    mean_predicted = np.bincount(index, weights=predicted, minlength=bins)[kept] / count[kept]
    mean_observed = np.bincount(index, weights=observed, minlength=bins)[kept] / count[kept]
    share = count[kept] / max(1, len(difference))
    error = float((share * np.abs(mean_predicted - mean_observed)).sum()) if kept.any() else float("nan")
    return Calibration(mean_predicted, mean_observed, count[kept], error)
