"""Ctrl-C and SIGTERM: write a checkpoint, then end with the exit status that schedulers expect."""

import signal
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer

from t2ifb.training.run_folder import RunFolder
from t2ifb.utils.overrides import typed

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(Callback):
    """Stops a run between two updates with exit status 128 + signal: 130 on Ctrl-C, 143 on SIGTERM.

    Lightning's own handlers exit with 0. A second Ctrl-C stops at once.
    """

    def __init__(self, run: RunFolder) -> None:
        """Write checkpoints to a run's folder."""
        self.run = run
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Install the signal handlers in place of Lightning's."""
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Stop after a signal: the last update is complete and the next has not started."""
        if trainer.world_size > 1:  # all stop at the same step, whichever got the signal
            told = trainer.strategy.reduce_boolean_decision(self.received is not None, all=False)
            self.received = self.received or (signal.SIGTERM if told else None)
        if self.received is not None:
            progress: Any = trainer.fit_loop.epoch_loop.batch_progress
            for count in (progress.total, progress.current):
                count.ready = count.processed  # this batch was fetched and will not be trained on
            trainer.save_checkpoint(self.run.last_checkpoint)
            self._stop(f"Stopped at step {trainer.global_step}. To continue: {self._resume()}")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Restore the previous handlers. The last checkpoint is written."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.received is not None:
            self._stop(f"Stopped after the last step. To finish: {self._resume()}")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def _resume(self) -> str:
        """Resume command for a run of the command line, or the argument in Python."""
        path = self.run.path.absolute()
        around = (path, *path.parents[:2])  # a run may be part of a round of an iteration
        begun = next((folder for folder in around if (folder / ".hydra").is_dir()), None)
        return typed("resume", path) if begun is None else f"python -m t2ifb.train {typed('resume', begun)}"

    def _stop(self, message: str) -> None:
        assert self.received is not None
        print(message, flush=True)
        raise SystemExit(128 + self.received)
