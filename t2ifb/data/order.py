"""The order of training as a function of (seed, position): nothing depends on what was drawn before."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

STREAM = 0x0DDE
"""Keeps this stream of random numbers apart from others with the same seed."""
PART_STREAM = 0x0DDF
"""The same for the order in which a part's units take turns."""

FEWER_STREAM = 0x0DE0
"""The same for which units are taken when not all are."""


@dataclass(frozen=True)
class Part:
    """Units that come more or less often than once in an epoch.

    Attributes:
        units: (n,) numbers of units.
        draws: How many of them an epoch holds. In a fixed shuffled order they take turns: an epoch goes on where the
            one before stopped, so that in any number of epochs e each unit comes e * draws / n times, rounded up or
            down.
    """

    units: NDArray[np.int64]
    draws: int

    @classmethod
    def of(cls, units: NDArray[np.int64], multiplicity: float) -> "Part":
        """Units that come `multiplicity` times an epoch on average, to the nearest whole number of draws from 1 on."""
        return cls(units, max(1, round(multiplicity * len(units))))


def epoch_permutation(units: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order (units,) in which an epoch goes through its units."""
    return np.random.default_rng([STREAM, seed, epoch]).permutation(units)


def drawn_units(units: int, count: int, seed: int) -> NDArray[np.int64]:
    """Numbers (count,) of some of `units`, rising; of one seed the fewer are among the more."""
    return np.sort(np.random.default_rng([FEWER_STREAM, seed]).permutation(units)[:count])


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
    """An endless row of batches; each epoch holds every unit once, or as often as its part says, in another order.

    The number of batches of an epoch is fixed, `ceil(total weight / batch_size)` (fewer, if there are fewer units), so
    that the number of steps of a training is known beforehand.
    """

    def __init__(
        self, weights: NDArray[np.int64], batch_size: int, seed: int, parts: Sequence[Part] | None = None
    ) -> None:
        """Lay out the order.

        Args:
            weights: (U,), how many comparisons each unit holds; at least 1.
            batch_size: About how many comparisons make a batch.
            seed: At least 0.
            parts: Of the units, each unit in one part; by default every unit comes once an epoch.

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
        self.draws = [(len(part.units), part.draws) for part in parts] if parts is not None else None
        mean = int(weights.sum()) if parts is None else round(sum(p.draws * weights[p.units].mean() for p in parts))
        units = len(weights) if parts is None else sum(part.draws for part in parts)
        self.steps_per_epoch = min(-(-mean // batch_size), units)
        self._turns = [
            (part.units[np.random.default_rng([PART_STREAM, seed, number]).permutation(len(part.units))], part.draws)
            for number, part in enumerate(parts or ())
        ]
        # Around an epoch's end two epochs are asked for in turns, as Lightning fetches one batch ahead.
        self._epoch = lru_cache(maxsize=2)(self._lay_out)

    def _lay_out(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = self._drawn(epoch)
        return order, cuts(self.weights[order], self.steps_per_epoch)

    def _drawn(self, epoch: int) -> NDArray[np.int64]:
        """The epoch's units in its order."""
        if self.draws is None:
            return epoch_permutation(len(self.weights), self.seed, epoch)
        drawn = [units[(epoch * draws + np.arange(draws)) % len(units)] for units, draws in self._turns]
        together = np.concatenate(drawn)
        return together[epoch_permutation(len(together), self.seed, epoch)]

    def units(self, position: int) -> NDArray[np.int64]:
        """The units of the batch at `position`, counted from 0 over all epochs."""
        epoch, batch = divmod(position, self.steps_per_epoch)
        order, borders = self._epoch(epoch)
        return order[borders[batch] : borders[batch + 1]]
