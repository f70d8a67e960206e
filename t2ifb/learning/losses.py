"""The losses of both stages, as in the report."""

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
