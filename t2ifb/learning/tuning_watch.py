"""The over-optimisation guard while a run goes on: what is kept, when it stops, what is shown."""

from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from PIL import Image

from t2ifb.data.files import atomic_write
from t2ifb.evaluation.tuning_figures import progress_sheet
from t2ifb.learning import loggers
from t2ifb.learning.exam import Answers, Exam
from t2ifb.learning.run_folder import RunFolder

SHOWN = 8
"""Prompts in the pictures."""


class TuningWatch(Callback):
    """At each validation writes down all scores and draws some images; stops a run whose judges do not rise any more.

    The checkpoint with the highest `val/judges` is kept, the figure of `t2ifb.evaluation.guard`. Gold has no say in it,
    nor has the reward unless the run has no judge.
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
            self._write(self.exam.base, 0)
        self._stop_if_waited(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Look at what was found."""
        judged = float(trainer.callback_metrics["val/judges"])
        self.best, self.waited = (judged, 0) if judged > self.best else (self.best, self.waited + 1)
        self._stop_if_waited(trainer)
        if trainer.is_global_zero and self.exam.last is not None and self.exam.base is not None:
            some = self._shown
            columns = {"base": self.exam.base.images[some], f"step {trainer.global_step}": self.exam.last.images[some]}
            self._write(self.exam.last, trainer.global_step)
            path = self.run.step(trainer.global_step, ".png")
            progress_sheet(self.exam.prompts[some], columns, path)
            loggers.show(trainer.loggers, "samples", path, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.best, self.waited = state_dict["best"], state_dict["waited"]

    @property
    def _shown(self) -> slice:
        """The first image of each of the first prompts."""
        return slice(0, SHOWN * self.exam.images_per_prompt, self.exam.images_per_prompt)

    def _write(self, answers: Answers, step: int) -> None:
        """Each image's scores, and the images that are shown, side by side and as they are."""
        answers.sheet(self.exam.prompts).write(self.run.step(step, ".csv"))
        strip = np.concatenate([image.permute(1, 2, 0).numpy() for image in answers.images[self._shown]], axis=1)
        with atomic_write(self.run.step(step, "_strip.png")) as file:
            Image.fromarray(strip).save(file, format="PNG")

    def _stop_if_waited(self, trainer: Trainer) -> None:
        if self.patience is not None and self.waited >= self.patience:
            trainer.should_stop = True
