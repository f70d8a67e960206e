"""The order of training as a function of (seed, position): nothing depends on what was drawn before."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

STREAM = 0x0DDE
"""Keeps this stream of random numbers apart from others with the same seed."""


def epoch_permutation(units: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order (units,) in which an epoch goes through its units."""
    return np.random.default_rng([STREAM, seed, epoch]).permutation(units)


def cuts(weights: NDArray[np.int64], batches: int) -> NDArray[np.int64]:
    """Cut a row of units into batches of nearly equal weight, none of them empty.

    Args:
        weights: (U,) positive.
        batches: B, from 1 to U.

    Returns:
        (B + 1,): batch b holds the units from `cuts[b]` to `cuts[b + 1]`, the latter not included.
    """
    sums = np.concatenate([[0], np.cumsum(weights)])
    wanted = np.arange(batches + 1) * (sums[-1] / batches)
    after = np.searchsorted(sums, wanted).clip(1, len(weights))
    nearest = np.where(wanted - sums[after - 1] <= sums[after] - wanted, after - 1, after)
    numbers = np.arange(batches + 1)
    rising = np.maximum.accumulate(nearest - numbers) + numbers
    rising = np.minimum(rising, len(weights) - batches + numbers)
    rising[0], rising[-1] = 0, len(weights)
    return rising


class TrainingOrder:
    """An endless row of batches; each epoch holds every unit once, in another order.

    The number of batches of an epoch is fixed, `ceil(total weight / batch_size)` (fewer, if there are fewer units), so
    that the number of steps of a training is known beforehand.
    """

    def __init__(self, weights: NDArray[np.int64], batch_size: int, seed: int) -> None:
        """Lay out the order.

        Args:
            weights: (U,), how many comparisons each unit holds; at least 1.
            batch_size: About how many comparisons make a batch.
            seed: At least 0.

        Raises:
            ValueError: There are no units, or batch_size or seed is out of range.
        """
        if len(weights) == 0:
            raise ValueError("no comparisons to train on: every ranking is empty or all ties")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, not {seed}")
        self.weights = weights
        self.seed = seed
        self.steps_per_epoch = min(-(-int(weights.sum()) // batch_size), len(weights))
        # Around an epoch's end two epochs are asked for in turns, as Lightning fetches one batch ahead.
        self._epoch = lru_cache(maxsize=2)(self._lay_out)

    def _lay_out(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = epoch_permutation(len(self.weights), self.seed, epoch)
        return order, cuts(self.weights[order], self.steps_per_epoch)

    def units(self, position: int) -> NDArray[np.int64]:
        """The units of the batch at `position`, counted from 0 over all epochs."""
        epoch, batch = divmod(position, self.steps_per_epoch)
        order, borders = self._epoch(epoch)
        return order[borders[batch] : borders[batch + 1]]
