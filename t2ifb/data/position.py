"""Where a training is in its endless row of batches, so that a resumed one goes on exactly there."""

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from lightning import LightningDataModule

Batch = TypeVar("Batch")


class TrainingPosition(Generic[Batch]):
    """The position of a data module whose batch at a position is a function of (seed, position) alone.

    The position counts the batches that were trained on, not those that were fetched (Lightning fetches one ahead): it
    is the trainer's own count of processed batches, plus the shift that a checkpoint whose loops were not restored
    leaves. Resuming is therefore exact, in the middle of an epoch too, from any checkpoint that was written between two
    batches.
    """

    def __init__(
        self, module: LightningDataModule, batch_at: Callable[[int], Batch], settings: Callable[[], dict[str, Any]]
    ) -> None:
        """Stand at 0.

        Args:
            module: Whose position it is.
            batch_at: Gives the batch at a position.
            settings: Gives what the order depends on: a checkpoint of another order is refused.
        """
        self.module, self.batch_at, self.settings = module, batch_at, settings
        self._restored: dict[str, Any] | None = None
        self._shift = 0

    @property
    def now(self) -> int:
        """Training batches consumed so far, since the beginning of training."""
        return self._shift + self._processed()

    @property
    def share(self) -> slice:
        """Every world-size-th unit of a batch, from this process's rank on."""
        trainer = self.module.trainer
        return slice(trainer.global_rank, None, trainer.world_size) if trainer else slice(None)

    def reset(self) -> None:
        """Begin at position 0, unless a checkpoint is loaded next."""
        self._restored, self._shift = None, 0

    def state(self) -> dict[str, Any]:
        """The position and the settings, for a checkpoint."""
        return {"position": self.now, **self.settings()}

    def restore(self, state: dict[str, Any]) -> None:
        """Keep a checkpoint's position until training begins."""
        self._restored = dict(state)

    def batches(self) -> "EndlessBatches[Batch]":
        """Endless batches from the present position on.

        Raises:
            ValueError: The checkpoint that was loaded is of another training order.
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
        """Batches that the trainer has finished, its resumed ones included."""
        if not self.module.trainer:
            return 0
        progress: Any = self.module.trainer.fit_loop.epoch_loop.batch_progress.total
        return int(progress.processed)


class EndlessBatches(Generic[Batch]):
    """Training batches from the position on."""

    def __init__(self, position: TrainingPosition[Batch]) -> None:
        """Iterate from where `position` is when the iteration begins."""
        self._position = position

    def __iter__(self) -> Iterator[Batch]:
        number = self._position.now
        while True:
            yield self._position.batch_at(number)
            number += 1
