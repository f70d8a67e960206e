"""Losses of both stages, as in the report."""

from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry_loss(
    better: Tensor,
    worse: Tensor,
    comparisons: float | None = None,
    shares: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """-mean log σ(r_better - r_worse) (PAPER eq. 4; Bradley and Terry, 1952), or its mean over votes.

    With n votes on a pair and the share p of them for the better image, the pair's loss is the sum over its votes,
    n (-p log σ(d) - (1 - p) log σ(-d)) with d = r_better - r_worse, and the mean is over all votes.

    Args:
        better: (C,), rewards of the preferred images.
        worse: (C,), rewards of the other images.
        comparisons: Number of comparisons, or sum of the weights, in the whole batch if these are one process's share;
            by default of these.
        shares: (C,), share p of the votes for the preferred image; 1 by default.
        weights: (C,), number n of votes; 1 by default.

    Returns:
        Scalar, non-negative; log 2 for equal rewards.
    """
    likelihoods = logsigmoid(better - worse)
    if shares is not None:
        likelihoods = shares * likelihoods + (1 - shares) * logsigmoid(worse - better)
    if weights is not None:
        likelihoods = weights * likelihoods
        comparisons = float(weights.sum()) if comparisons is None else comparisons
    return -likelihoods.sum() / (len(better) if comparisons is None else comparisons)


def votes_predicted(
    better: Tensor, worse: Tensor, shares: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """Number of votes, a scalar, that agree with the rewards; equal rewards count as a preference for the worse image.

    The arguments are those of `bradley_terry_loss`.
    """
    right = (better > worse).to(better.dtype)
    agreed = right if shares is None else right * shares + (1 - right) * (1 - shares)
    return agreed.sum() if weights is None else (agreed * weights).sum()


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
