"""What the over-optimisation guard goes by: one figure for what all judges say of a policy."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from t2ifb.evaluation.score_sheet import ScoreSheet
from t2ifb.evaluation.statistics import Interval, bootstrap_function

MARGIN = 0.5
"""How far the guard's figure may be above the worst judge, in standard deviations."""


def rise(before: ArrayLike, after: ArrayLike) -> float:
    """How far a scorer's mean rose above the base model's, in standard deviations of its scores of the base's images.

    Args:
        before: (N,) scores of the base model's images; NaN where there is none.
        after: (N,) scores of the policy's images for the same prompts and noise.
    """
    one, other = np.asarray(before, np.float64), np.asarray(after, np.float64)
    known = (other - one)[np.isfinite(other - one)]
    return float(known.mean() / _deviation(one)) if len(known) else float("nan")


def guarded(rises: ArrayLike, margin: float = MARGIN, weights: Sequence[float] | None = None) -> NDArray[np.float64]:
    """The weighted mean of the judges' rises, but no more than a margin above the worst of them.

    A judge with weight 0 counts in neither.

    A reward finds what some judge likes, most easily one that shares its encoder; the mean alone is then carried by
    that judge while the others fall. `experiments/overoptimisation/` compares this rule with others.

    Args:
        rises: (..., J) of each judge, in standard deviations.
        margin: How far above the worst it may be; infinity leaves the mean, zero the worst judge.
        weights: (J,) of the judges, at least one above 0; equal by default.

    Returns:
        (...), NaN where one of the rises that count is.
    """
    values = np.asarray(rises, np.float64)
    weight = np.ones(values.shape[-1]) if weights is None else np.asarray(weights, np.float64)
    values, weight = values[..., weight > 0], weight[weight > 0]
    return np.minimum(np.average(values, -1, weight), values.min(-1) + margin)


def change(
    base: ScoreSheet,
    earlier: ScoreSheet,
    later: ScoreSheet,
    judges: Mapping[str, float],
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """How the guard's figure changed from one validation to another, with its interval over the same prompts.

    Args:
        base: The base model's scores.
        earlier: Those of a validation of the same prompts and noise.
        later: Those of another one.
        judges: Weight in the figure of each scorer that it is made of, by name.
        seed: Of the resampling.
        level: Of the interval, in (0, 1).
    """
    before, units = base.by_prompt, {name: _deviation(base.columns[name]) for name in judges}
    weights = list(judges.values())
    gains = [
        (sheet.by_prompt[name] - before[name]) / unit for sheet in (earlier, later) for name, unit in units.items()
    ]

    def changed(means: NDArray[np.float64]) -> NDArray[np.float64]:
        old, new = np.split(means, 2, axis=1)
        return guarded(new, weights=weights) - guarded(old, weights=weights)

    return bootstrap_function(np.stack(gains, 1), changed, seed, level)


def _deviation(scores: NDArray[np.float64]) -> float:
    """The unit of rises; 1 for a scorer that has said too little to have one."""
    known = scores[np.isfinite(scores)]
    return max(float(known.std(ddof=1)), 1e-6) if len(known) > 1 else 1.0
