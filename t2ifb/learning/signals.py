"""SIGTERM and Ctrl-C: finish the update, write a checkpoint, end with the status that the shell expects."""

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals(Callback):
    """Ends training between two updates after SIGTERM (exit status 143) or Ctrl-C (130).

    Lightning's own handlers end with status 0 or 1 and without a checkpoint. A second Ctrl-C does not wait.
    """

    def __init__(self, save: Callable[[Trainer], None]) -> None:
        """Watch for signals while training lasts.

        Args:
            save: Writes the checkpoint, given the trainer between two updates.
        """
        self.save = save
        self.received: int | None = None
        self._replaced: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over; Lightning has just taken SIGTERM."""
        self.received = signal.SIGTERM if trainer.received_sigterm else None
        if threading.current_thread() is threading.main_thread():
            self._replaced = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop here if there was a signal and the last update is complete."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._stop_if_told(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last update counts too."""
        self._stop_if_told(trainer)
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back, however training ends."""
        self._give_back()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        print(f"{name}: stopping after this update", file=sys.stderr)

    def _stop_if_told(self, trainer: Trainer) -> None:
        told = self.received or 0
        if trainer.world_size > 1:  # all processes have to write the checkpoint together
            mine = torch.tensor(told, device=trainer.strategy.root_device)
            told = int(trainer.strategy.all_gather(mine).max())
        if told:
            self.save(trainer)
            raise SystemExit(128 + told)

    def _give_back(self) -> None:
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        self._replaced = {}
