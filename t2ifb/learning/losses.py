"""The losses, as pure functions of tensors."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry_loss(better: Tensor, worse: Tensor, comparisons: float | None = None) -> Tensor:
    """Negative log-likelihood of the comparisons, -E[log sigma(r(x_i, z) - r(x_j, z))] (PAPER eq. 4).

    Args:
        better: (C,) rewards of the images that were ranked higher.
        worse: (C,) rewards of the images that they were compared with.
        comparisons: What the sum is divided by; C by default. In several processes it is the whole batch's number
            divided by the number of processes, so that averaged gradients are those of the whole batch.

    Returns:
        A scalar; log 2 where all rewards are equal.
    """
    return -logsigmoid(better - worse).sum() / (len(better) if comparisons is None else comparisons)


def gaussian_kl(mean_p: Tensor, mean_q: Tensor, variance: Tensor | float) -> Tensor:
    """KL(N(mean_p, variance I) || N(mean_q, variance I)) = ||mean_p - mean_q||^2 / (2 variance) (PAPER eq. 5).

    Args:
        mean_p: (B, ...).
        mean_q: (B, ...).
        variance: Of both, positive; a number, or (B,).

    Returns:
        (B,), summed over all dimensions but the first.
    """
    squared_distance = (mean_p - mean_q).square().flatten(1).sum(1)
    return squared_distance / (2 * torch.as_tensor(variance, dtype=squared_distance.dtype, device=mean_p.device))
