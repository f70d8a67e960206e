"""Training order as a function of (seed, position), and data modules that resume it at any position."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

import numpy as np
from lightning import LightningDataModule
from numpy.typing import NDArray

from t2ifb.utils.random_streams import Stream, generator


@dataclass(frozen=True)
class WeightedUnits:
    """Units that appear more or less often than once per epoch.

    Attributes:
        units: (n,) indices of units.
        draws: Units per epoch. They follow a fixed shuffled order, and each epoch continues where the previous one
            stopped: over e epochs each unit appears e * draws / n times, rounded up or down.
    """

    units: NDArray[np.int64]
    draws: int

    @classmethod
    def of(cls, units: NDArray[np.int64], multiplicity: float) -> "WeightedUnits":
        """Units that appear `multiplicity` times per epoch on average. Draws are rounded, with a minimum of 1."""
        return cls(units, max(1, round(multiplicity * len(units))))

    @classmethod
    def of_blocks(cls, blocks: Sequence[tuple[int, float]], owner: NDArray[np.int64]) -> "list[WeightedUnits]":
        """Units of consecutive blocks of owners, such as the rankings of a `Mixture`.

        Args:
            blocks: Number of owners and multiplicity of each block.
            owner: (U,), each unit's owner.
        """
        block = np.repeat(np.arange(len(blocks)), [count for count, _ in blocks])[owner]
        members = [np.flatnonzero(block == number) for number in range(len(blocks))]
        return [cls.of(units, times) for units, (_, times) in zip(members, blocks, strict=True) if len(units)]


def epoch_permutation(units: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The permutation (units,) of an epoch."""
    return generator(Stream.EPOCH_ORDER, seed, epoch).permutation(units)


def drawn_units(units: int, count: int, seed: int) -> NDArray[np.int64]:
    """Draw sorted indices (count,) from `units`. With one seed, smaller subsets are contained in larger ones."""
    return np.sort(generator(Stream.SUBSET, seed).permutation(units)[:count])


def cuts(weights: NDArray[np.int64], batches: int) -> NDArray[np.int64]:
    """Cut a sequence of units into non-empty batches of nearly equal weight.

    Args:
        weights: (U,) positive.
        batches: B, from 1 to U.

    Returns:
        (B + 1,): batch b contains the units `cuts[b]` to `cuts[b + 1] - 1`.
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
    """An endless sequence of batches. Each epoch has a new order of all units, with multiplicities from `parts`.

    The number of batches per epoch is fixed: `ceil(total weight / batch_size)`, or the number of units if that is
    smaller. The number of training steps is therefore known beforehand.
    """

    def __init__(
        self, weights: NDArray[np.int64], batch_size: int, seed: int, parts: Sequence[WeightedUnits] | None = None
    ) -> None:
        """Compute the batch boundaries.

        Args:
            weights: (U,), number of comparisons per unit; at least 1.
            batch_size: Approximate number of comparisons per batch.
            seed: At least 0.
            parts: Partition of the units; by default every unit appears once per epoch.

        Raises:
            ValueError: No units are given, or batch_size or seed is out of range.
        """
        if len(weights) == 0:
            raise ValueError("no comparisons to train on: every ranking is empty or contains only ties")
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
            (part.units[generator(Stream.WEIGHTED_ORDER, seed, number).permutation(len(part.units))], part.draws)
            for number, part in enumerate(parts or ())
        ]
        # Lightning fetches one batch ahead, so two epochs alternate around the end of an epoch.
        self._epoch = lru_cache(maxsize=2)(self._lay_out)

    def _lay_out(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = self._drawn(epoch)
        return order, cuts(self.weights[order], self.steps_per_epoch)

    def _drawn(self, epoch: int) -> NDArray[np.int64]:
        """Units of an epoch in order."""
        if self.draws is None:
            return epoch_permutation(len(self.weights), self.seed, epoch)
        drawn = [units[(epoch * draws + np.arange(draws)) % len(units)] for units, draws in self._turns]
        together = np.concatenate(drawn)
        return together[epoch_permutation(len(together), self.seed, epoch)]

    def units(self, position: int) -> NDArray[np.int64]:
        """Units of the batch at `position`, counted from 0 over all epochs."""
        epoch, batch = divmod(position, self.steps_per_epoch)
        order, borders = self._epoch(epoch)
        return order[borders[batch] : borders[batch + 1]]


Batch = TypeVar("Batch")


class ResumableDataModule(LightningDataModule, ABC, Generic[Batch]):
    """Data module whose endless training batches are a function of (seed, position) alone.

    The position counts trained batches, not fetched ones (Lightning fetches one ahead). It is the trainer's count of
    processed batches plus an offset, which is nonzero after a checkpoint whose loops were not restored. Resuming is
    therefore exact, also within an epoch, from any checkpoint written between two batches.
    """

    _restored: dict[str, Any] | None = None
    _shift = 0

    @abstractmethod
    def train_batch(self, position: int) -> Batch:
        """This process's share of the training batch at a position, counted from 0 over all epochs."""

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """Settings of the order. A checkpoint with other settings is rejected."""

    @property
    def position(self) -> int:
        """Number of training batches consumed since the start of training."""
        return self._shift + self._processed()

    @property
    def share(self) -> slice:
        """Slice of a batch for this process: every world-size-th unit, starting at its rank."""
        return slice(self.trainer.global_rank, None, self.trainer.world_size) if self.trainer else slice(None)

    def setup(self, stage: str) -> None:
        """Start at position 0. A checkpoint that is loaded later overrides this."""
        self._restored, self._shift = None, 0

    def state_dict(self) -> dict[str, Any]:
        """The position and the settings that determine the order."""
        return {"position": self.position, **self._settings()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store a checkpoint's position until training starts."""
        self._restored = dict(state_dict)

    def train_dataloader(self) -> Iterator[Batch]:
        """Endless batches from the current position.

        Raises:
            ValueError: The loaded checkpoint has another training order.
        """
        if self._restored is not None:
            state, self._restored = self._restored, None
            now = self._settings()
            if differing := [key for key in now if state.get(key) != now[key]]:
                changes = ", ".join(f"{key} was {state.get(key)} and is {now[key]}" for key in differing)
                raise ValueError(f"Cannot resume: {changes}. Resume with the same data and settings, or start anew.")
            self._shift = state["position"] - self._processed()
        return map(self.train_batch, itertools.count(self.position))

    def _processed(self) -> int:
        """Batches that the trainer has finished, including those before a resume."""
        if not self.trainer:
            return 0
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return int(progress.processed)
