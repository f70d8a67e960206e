"""Validation callback with early stopping: the over-optimisation guard during a run."""

from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from PIL import Image

from t2ifb.evaluation.tuning_plots import progress_sheet
from t2ifb.finetuning.evaluator import EvalSamples, Evaluator
from t2ifb.training import loggers
from t2ifb.training.run_folder import RunFolder
from t2ifb.utils.files import atomic_write

SHOWN = 8
"""Number of prompts in the pictures."""


class ValidationCallback(Callback):
    """Writes scores and images of each validation, and stops a run whose judges no longer improve.

    The checkpoint with the highest `val/judges` is kept, the selection score of `t2ifb.evaluation.selection`. Gold
    never enters it, and the reward only if the run has no judge.
    """

    def __init__(self, run: RunFolder, evaluator: Evaluator, patience: int | None = None) -> None:
        """Store the settings.

        Args:
            run: Run folder; pictures and scores go to its `samples/`.
            evaluator: The evaluation.
            patience: Stop after this many validations without improvement; never by default.
        """
        self.run, self.evaluator, self.patience = run, evaluator, patience
        self.best, self.waited = float("-inf"), 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Record the base model's scores. A run that stopped early does not continue training after a resume."""
        if trainer.is_global_zero and self.evaluator.base is not None:
            self._write(self.evaluator.base, 0)
        self._stop_if_waited(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the results and check for early stopping."""
        judged = float(trainer.callback_metrics["val/judges"])
        self.best, self.waited = (judged, 0) if judged > self.best else (self.best, self.waited + 1)
        self._stop_if_waited(trainer)
        if trainer.is_global_zero and self.evaluator.last is not None and self.evaluator.base is not None:
            some = self._shown
            columns = {
                "base": self.evaluator.base.images[some],
                f"step {trainer.global_step}": self.evaluator.last.images[some],
            }
            self._write(self.evaluator.last, trainer.global_step)
            path = self.run.step(trainer.global_step, ".png")
            progress_sheet(self.evaluator.prompts[some], columns, path)
            loggers.show(trainer.loggers, "samples", path, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score."""
        self.best, self.waited = state_dict["best"], state_dict["waited"]

    @property
    def _shown(self) -> slice:
        """First images of the first prompts."""
        return slice(0, SHOWN * self.evaluator.images_per_prompt, self.evaluator.images_per_prompt)

    def _write(self, answers: EvalSamples, step: int) -> None:
        """Write each image's scores, and the shown images side by side at their own size."""
        answers.sheet(self.evaluator.prompts).write(self.run.step(step, ".csv"))
        strip = np.concatenate([image.permute(1, 2, 0).numpy() for image in answers.images[self._shown]], axis=1)
        with atomic_write(self.run.step(step, "_strip.png")) as file:
            Image.fromarray(strip).save(file, format="PNG")

    def _stop_if_waited(self, trainer: Trainer) -> None:
        if self.patience is not None and self.waited >= self.patience:
            trainer.should_stop = True
