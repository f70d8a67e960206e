"""The over-optimisation guard while a run goes on: what is kept, when it stops, what is shown."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from t2ifb.evaluation.figures import progress_sheet
from t2ifb.learning import loggers
from t2ifb.learning.exam import Exam
from t2ifb.learning.run_folder import RunFolder

SHOWN = 8
"""Prompts in the pictures."""


class TuningWatch(Callback):
    """At each validation writes down all scores and draws some images; stops a run whose judges do not rise any more.

    The checkpoint with the highest `val/judges` is kept: the mean over the judges of how far each rose above the base
    model, in standard deviations of its scores of the base model's images. Neither the reward nor gold has a say.
    """

    def __init__(self, run: RunFolder, exam: Exam, patience: int | None = None) -> None:
        """Watch a run.

        Args:
            run: Pictures and scores go to its `samples/`.
            exam: What validations look at.
            patience: Validations without a better one after which the run stops; never by default.
        """
        self.run, self.exam, self.patience = run, exam, patience
        self.best, self.waited = float("-inf"), 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Note the base model's scores; a run that had stopped does not go on when it is resumed for its end."""
        if trainer.is_global_zero and self.exam.base is not None:
            self.exam.base.write_scores(self.exam.prompts, self._path(0, "csv"))
        self._stop_if_waited(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Look at what was found."""
        judged = float(trainer.callback_metrics["val/judges"])
        self.best, self.waited = (judged, 0) if judged > self.best else (self.best, self.waited + 1)
        self._stop_if_waited(trainer)
        if trainer.is_global_zero and self.exam.last is not None and self.exam.base is not None:
            some = slice(0, SHOWN * self.exam.images_per_prompt, self.exam.images_per_prompt)
            columns = {"base": self.exam.base.images[some], f"step {trainer.global_step}": self.exam.last.images[some]}
            self.exam.last.write_scores(self.exam.prompts, self._path(trainer.global_step, "csv"))
            path = self._path(trainer.global_step, "png")
            progress_sheet(self.exam.prompts[some], columns, path)
            loggers.show(trainer.loggers, "samples", path, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.best, self.waited = state_dict["best"], state_dict["waited"]

    def _path(self, step: int, suffix: str) -> Path:
        return self.run.samples / f"step_{step:06d}.{suffix}"

    def _stop_if_waited(self, trainer: Trainer) -> None:
        if self.patience is not None and self.waited >= self.patience:
            trainer.should_stop = True
