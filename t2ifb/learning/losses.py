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


def kl_sums(steps: Tensor) -> dict[str, Tensor]:
    """The KL divergence of whole rollouts from that of each step: the exact sum, and that without the last two steps.

    On a strided grid one of the last two steps has by far the smallest variance, and so most of the exact sum's weight:
    with 20 steps of `shapes`, step 18 has 73 % of the weight on the squared difference of the predicted noise. The
    second sum tells how far the rest of the rollout has moved.

    Args:
        steps: (T, ...) nats, in the order of the steps from noise to image.

    Returns:
        `kl` and `kl_without_last_two`, each (...).
    """
    return {"kl": steps.sum(0), "kl_without_last_two": steps[:-2].sum(0)}
