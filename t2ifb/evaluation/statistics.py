"""Intervals over prompts: bootstrap, and an exact one for shares of few prompts.

Prompts are resampled, not images or comparisons, because scores of one prompt are not independent.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean with its interval, a bootstrap percentile interval if not said otherwise; all NaN without values."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval, which makes a difference significant."""
        return self.low > 0 or self.high < 0

    def scaled(self, factor: float) -> "Interval":
        """The interval in another unit, for example per cent."""
        return Interval(self.mean * factor, self.low * factor, self.high * factor)


def bootstrap_interval(values: ArrayLike, seed: int = 0, level: float = 0.95, resamples: int = RESAMPLES) -> Interval:
    """Mean of one value per prompt, with its interval.

    Args:
        values: (P,), one value per prompt.
        seed: Seed of the resampling. The same seed draws the same prompts for any values.
        level: Confidence level, in (0, 1).
        resamples: Number of resamples.

    Raises:
        ValueError: `values` is not one-dimensional, or `level` is not in (0, 1).
    """
    array = np.asarray(values, np.float64)
    return bootstrap_ratio(array, np.ones_like(array), seed, level, resamples)


def bootstrap_ratio(
    numerator: ArrayLike,
    denominator: ArrayLike,
    seed: int = 0,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Ratio of two sums over prompts, such as correct comparisons over all comparisons.

    Args:
        numerator: (P,), one value per prompt.
        denominator: (P,), one non-negative value per prompt.
        seed: Seed of the resampling. The same seed draws the same prompts.
        level: Confidence level, in (0, 1).
        resamples: Number of resamples.

    Raises:
        ValueError: The shapes differ, or `level` is not in (0, 1).
    """
    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    if top.ndim != 1 or top.shape != bottom.shape:
        raise ValueError(f"Expected one value per prompt in both, got shapes {top.shape} and {bottom.shape}.")
    if not 0 < level < 1:
        raise ValueError(f"Expected a level between 0 and 1, such as 0.95, got {level}.")
    if not bottom.sum() > 0:
        return Interval(np.nan, np.nan, np.nan)
    weights = _resampled(len(top), seed, resamples)
    below = weights @ bottom
    drawn = (weights @ top)[below > 0] / below[below > 0]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(top.sum() / bottom.sum()), float(low), float(high))


def share_interval(shares: ArrayLike, level: float = 0.95) -> Interval:
    """Mean of one share per prompt, with the interval of Clopper and Pearson (Biometrika 26, 1934).

    The bootstrap has no width where all shares are 0 or all are 1. This interval has one, and holds its level for few
    prompts. The sum of the shares takes the place of the number of successes; shares between 0 and 1 vary less than
    successes, so that the interval is then too wide rather than too narrow.

    Args:
        shares: (P,), each in [0, 1].
        level: Confidence level, in (0, 1).

    Raises:
        ValueError: `shares` is not one-dimensional, or a share is not in [0, 1].
    """
    array = np.asarray(shares, np.float64)
    if array.ndim != 1 or not ((array >= 0) & (array <= 1)).all():
        raise ValueError(f"Expected one share from 0 to 1 per prompt, got shape {array.shape}.")
    if not array.size:
        return Interval(np.nan, np.nan, np.nan)
    total, count = float(array.sum()), array.size
    low = beta.ppf((1 - level) / 2, total, count - total + 1) if total > 0 else 0.0
    high = beta.ppf((1 + level) / 2, total + 1, count - total) if total < count else 1.0
    return Interval(total / count, float(low), float(high))


def paired_difference(
    a: ArrayLike, b: ArrayLike, weights: ArrayLike | None = None, seed: int = 0, level: float = 0.95
) -> Interval:
    """Mean of a - b over the same prompts, resampled together.

    Args:
        a: (P,), one value per prompt.
        b: (P,), one value per prompt, in the same order.
        weights: (P,), weight of each prompt, such as its number of comparisons; equal by default.
        seed: Seed of the resampling.
        level: Confidence level, in (0, 1).

    Raises:
        ValueError: The shapes differ.
    """
    one, other = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if one.shape != other.shape:
        raise ValueError(f"Paired values need the same prompts, got {one.shape} and {other.shape} values.")
    weight = np.ones_like(one) if weights is None else np.asarray(weights, np.float64)
    return bootstrap_ratio(np.where(weight > 0, one - other, 0) * weight, weight, seed, level)


def bootstrap_function(
    values: ArrayLike,
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    seed: int = 0,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """Function of several means over the same prompts, resampled together.

    Args:
        values: (P, K), K values per prompt; NaN if missing.
        function: Maps means (R, K) to (R,).
        seed: Seed of the resampling.
        level: Confidence level, in (0, 1).
        resamples: Number of resamples.
    """
    array = np.asarray(values, np.float64)
    known = np.isfinite(array)
    weights = np.concatenate([np.ones((1, len(array))), _resampled(len(array), seed, resamples)])
    with np.errstate(invalid="ignore", divide="ignore"):
        found = function((weights @ np.where(known, array, 0)) / (weights @ known))
    drawn = found[1:][np.isfinite(found[1:])]
    if not len(drawn):
        return Interval(np.nan, np.nan, np.nan)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(found[0]), float(low), float(high))


def _resampled(count: int, seed: int, resamples: int) -> NDArray[np.float64]:
    """Number of draws of each prompt in each resample, (resamples, count)."""
    drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
    drawn += count * np.arange(resamples)[:, None]  # one histogram for all resamples
    return np.bincount(drawn.ravel(), minlength=resamples * count).reshape(resamples, count).astype(np.float64)
