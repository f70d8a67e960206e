"""Resumable position in an infinite batch stream."""

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from lightning import LightningDataModule

Batch = TypeVar("Batch")


class TrainingPosition(Generic[Batch]):
    """Position of a data module whose batches are a function of (seed, position) alone.

    The position counts trained batches, not fetched ones (Lightning fetches one ahead). It is the trainer's count of
    processed batches plus an offset, which is nonzero after a checkpoint whose loops were not restored. Resuming is
    therefore exact, also within an epoch, from any checkpoint written between two batches.
    """

    def __init__(
        self, module: LightningDataModule, batch_at: Callable[[int], Batch], settings: Callable[[], dict[str, Any]]
    ) -> None:
        """Start at position 0.

        Args:
            module: The data module.
            batch_at: Function from position to batch.
            settings: Function that returns the settings of the order. A checkpoint with other settings is rejected.
        """
        self.module, self.batch_at, self.settings = module, batch_at, settings
        self._restored: dict[str, Any] | None = None
        self._shift = 0

    @property
    def now(self) -> int:
        """Number of training batches consumed since the start of training."""
        return self._shift + self._processed()

    @property
    def share(self) -> slice:
        """Slice of a batch for this process: every world-size-th unit, starting at its rank."""
        trainer = self.module.trainer
        return slice(trainer.global_rank, None, trainer.world_size) if trainer else slice(None)

    def reset(self) -> None:
        """Start at position 0. A checkpoint that is loaded later overrides this."""
        self._restored, self._shift = None, 0

    def state(self) -> dict[str, Any]:
        """Position and settings for a checkpoint."""
        return {"position": self.now, **self.settings()}

    def restore(self, state: dict[str, Any]) -> None:
        """Store a checkpoint's position until training starts."""
        self._restored = dict(state)

    def batches(self) -> "EndlessBatches[Batch]":
        """Endless batches from the current position.

        Raises:
            ValueError: The loaded checkpoint has another training order.
        """
        if self._restored is not None:
            state, self._restored = self._restored, None
            now = self.settings()
            if differing := [key for key in now if state.get(key) != now[key]]:
                changes = ", ".join(f"{key} was {state.get(key)} and is {now[key]}" for key in differing)
                raise ValueError(f"Cannot resume: {changes}. Resume with the same data and settings, or start anew.")
            self._shift = state["position"] - self._processed()
        return EndlessBatches(self)

    def _processed(self) -> int:
        """Batches that the trainer has finished, including those before a resume."""
        if not self.module.trainer:
            return 0
        progress: Any = self.module.trainer.fit_loop.epoch_loop.batch_progress.total
        return int(progress.processed)


class EndlessBatches(Generic[Batch]):
    """Iterable of training batches from a position."""

    def __init__(self, position: TrainingPosition[Batch]) -> None:
        """Store the position; iteration starts at its value at that time."""
        self._position = position

    def __iter__(self) -> Iterator[Batch]:
        number = self._position.now
        while True:
            yield self._position.batch_at(number)
            number += 1
