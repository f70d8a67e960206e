"""The losses of both stages, as in the report."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry_loss(better: Tensor, worse: Tensor, comparisons: float | None = None) -> Tensor:
    """-mean log σ(r_better - r_worse) (PAPER eq. 4; Bradley and Terry, 1952).

    Args:
        better: (C,) rewards of the preferred images.
        worse: (C,) rewards of the others.
        comparisons: How many the mean is over, when these are one process's share of a larger batch; C by default.

    Returns:
        Scalar, not negative; log 2 where the rewards are equal.
    """
    return -logsigmoid(better - worse).sum() / (len(better) if comparisons is None else comparisons)


def gaussian_kl(mean_p: Tensor, mean_q: Tensor, variance: Tensor | float) -> Tensor:
    """KL(N(mean_p, variance I) || N(mean_q, variance I)) = ||mean_p - mean_q||² / (2 variance) (PAPER eq. 5).

    The difference and the sum are in float32, whatever the precision of the means.

    Args:
        mean_p: (B, ...).
        mean_q: (B, ...).
        variance: Of every dimension: a number or a tensor that broadcasts to the means.

    Returns:
        (B,) float32, in nats, summed over all dimensions but the first.
    """
    squared = (mean_p.float() - mean_q.float()).square() / (2 * torch.as_tensor(variance, device=mean_p.device).float())
    return squared.flatten(1).sum(1)
