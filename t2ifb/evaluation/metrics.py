"""Metrics of scorers and images: preference accuracy (PAPER, table 1), rank correlation, diversity."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from rich.progress import track

from t2ifb.data.embeddings import Encoder
from t2ifb.data.images import load_image
from t2ifb.evaluation.statistics import Interval, bootstrap_interval, bootstrap_ratio, paired_difference

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


def diversity(vectors: torch.Tensor) -> torch.Tensor:
    """Mean distance (1 - cosine) between the images of each prompt, (P,).

    Args:
        vectors: (P, K, D) embeddings of unit length, K at least 2.
    """
    count = vectors.shape[1]
    cosines = vectors @ vectors.transpose(1, 2)
    return 1 - (cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)) / (count * (count - 1))


def embed(encoder: Encoder, files: Sequence[Path], batch_size: int, device: torch.device) -> torch.Tensor:
    """(N, D) unit vectors of images on disk, by an encoder that takes (B, 3, H, W) in [0, 1]."""
    parts = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    with torch.inference_mode():
        pixels = (torch.stack([*map(load_image, part)]).to(device) for part in track(parts, "embedding images"))
        return torch.cat([encoder.encode_images(some).cpu() for some in pixels])
