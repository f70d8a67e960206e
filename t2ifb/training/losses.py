"""Losses of both stages, as in the report."""

from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry_loss(better: Tensor, worse: Tensor, comparisons: float | None = None) -> Tensor:
    """-mean log σ(r_better - r_worse) (PAPER eq. 4; Bradley and Terry, 1952).

    Args:
        better: (C,), rewards of the preferred images.
        worse: (C,), rewards of the other images.
        comparisons: Number of comparisons in the whole batch if these are one process's share; C by default.

    Returns:
        Scalar, non-negative; log 2 for equal rewards.
    """
    return -logsigmoid(better - worse).sum() / (len(better) if comparisons is None else comparisons)


def kl_sums(steps: Tensor) -> dict[str, Tensor]:
    """KL divergence of rollouts from that of each step: the exact sum, and the sum without the last two steps.

    On a strided grid one of the last two steps has by far the smallest variance and hence most of the weight in the
    exact
    sum: with 20 steps of `shapes`, step 18 has 73 % of the weight on the squared difference of the predicted noise. The
    second sum shows how far the rest of the rollout has moved.

    Args:
        steps: (T, ...), nats, in the order from noise to image.

    Returns:
        `kl` and `kl_without_last_two`, each (...).
    """
    return {"kl": steps.sum(0), "kl_without_last_two": steps[:-2].sum(0)}
