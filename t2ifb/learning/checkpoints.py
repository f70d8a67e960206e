"""Checkpoints that a killed run goes on from with the same end, and the state that did best on validation."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import CheckpointIO

from t2ifb.data.files import atomic_write
from t2ifb.learning.run_folder import RunFolder


class AtomicCheckpointIO(CheckpointIO):
    """Checkpoints that are there whole or not at all, and hold tensors and plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            StorageError: The disk is full or the folder cannot be written to; what was there is untouched.
        """
        with atomic_write(path) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, without executing what it holds.

        Raises:
            ValueError: It cannot be read.
        """
        try:
            checkpoint: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except Exception as error:  # zip, pickle or torch: anything
            raise ValueError(f"{path} is not a checkpoint of this software: {error}") from error
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


class Checkpoints(Callback):
    """Keeps `last.ckpt`, written between two updates, and `best.ckpt`.

    Everything is written just before an update, never just after one: there a validation may be due, and a run that
    goes on from such a checkpoint would leave it out. After a validation, and every so many seconds, the next such
    moment is used.
    """

    def __init__(self, run: RunFolder, monitor: str, every_seconds: float = 60.0) -> None:
        """Keep checkpoints.

        Args:
            run: Where to.
            monitor: The logged figure that is best when highest; of equal ones the first is kept.
            every_seconds: What an interruption loses at the most, in seconds of training.
        """
        self.run = run
        self.monitor = monitor
        self.every_seconds = every_seconds
        self.best: float | None = None
        self.best_step: int | None = None
        self._due = False
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The clock starts with training."""
        self._due, self._saved_at = False, time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Write `last.ckpt` if it is time and the last update is complete."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            late = time.monotonic() - self._saved_at >= self.every_seconds
            if self._due or (trainer.strategy.broadcast(late) if trainer.world_size > 1 else late):
                self.save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights if they are the best so far.

        Raises:
            ValueError: The figure that decides was not logged.
        """
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(trainer.callback_metrics))
            raise ValueError(f"the best state is to be chosen by {self.monitor!r}, but only {logged} are logged")
        score = float(trainer.callback_metrics[self.monitor])
        self._due = True
        if (self.best is None or score > self.best) and finite(pl_module):
            self.best, self.best_step = score, trainer.global_step
            trainer.save_checkpoint(self.run.best_checkpoint, weights_only=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The end is a checkpoint too: what comes after it can be repeated."""
        self.save_last(trainer)

    def save_last(self, trainer: Trainer) -> None:
        """Write `last.ckpt` now, between two updates; not with broken weights, nobody could go on from them."""
        if finite(trainer.lightning_module):
            trainer.save_checkpoint(self.run.last_checkpoint)
        self._due, self._saved_at = False, time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Which state was best."""
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Know it again."""
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]


def finite(module: LightningModule) -> bool:
    """Whether no weight is NaN or infinite."""
    return all(bool(torch.isfinite(weight).all()) for weight in module.parameters())
