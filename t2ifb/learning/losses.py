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
