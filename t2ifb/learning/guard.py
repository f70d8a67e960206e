"""What the over-optimisation guard goes by: one figure for what all judges say of a policy."""

from collections.abc import Sequence

from torch import Tensor, ones

MARGIN = 0.5
"""How far the guard's figure may be above the worst judge, in standard deviations."""


def rise(before: Tensor, after: Tensor) -> float:
    """How far a scorer's mean rose above the base model's, in standard deviations of its scores of the base's images.

    Args:
        before: (N,) scores of the base model's images; NaN where there is none.
        after: (N,) scores of the policy's images for the same prompts and noise.
    """
    known = before[before.isfinite()]
    deviation = known.std().clamp(min=1e-6) if len(known) > 1 else ones(())
    return float((after - before).nanmean() / deviation)


def guarded(rises: Sequence[float], margin: float = MARGIN) -> float:
    """The mean of the judges' rises, but no more than a margin above the worst of them.

    A reward finds what some judge likes, most easily one that shares its encoder; the mean alone is then carried by
    that judge while the others fall. `experiments/overoptimisation/` compares this rule with others.

    Args:
        rises: Of each judge, in standard deviations.
        margin: How far above the worst it may be; infinity leaves the mean, zero the worst judge.
    """
    return min(sum(rises) / len(rises), min(rises) + margin)
