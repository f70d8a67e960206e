"""Validation callback with early stopping: the over-optimisation guard during a run."""

import sys
from typing import Any

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from PIL import Image

from t2ifb.evaluation.tuning_plots import progress_sheet
from t2ifb.finetuning.evaluator import EvalSamples, Evaluator
from t2ifb.training import loggers
from t2ifb.training.run_folder import RunFolder
from t2ifb.utils.files import atomic_write

SHOWN = 8
"""Number of prompts in the pictures."""


class ValidationCallback(EarlyStopping):
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
        most = sys.maxsize if patience is None else patience
        options: dict[str, Any] = {"check_finite": False, "check_on_train_epoch_end": False}
        super().__init__("val/judges", patience=most, mode="max", **options)
        self.run, self.evaluator = run, evaluator

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Record the base model's scores. A run that stopped early does not continue training after a resume."""
        if trainer.is_global_zero and self.evaluator.base is not None:
            self._write(self.evaluator.base, 0)
        trainer.should_stop |= self.wait_count >= self.patience

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the results and check for early stopping."""
        super().on_validation_end(trainer, module)
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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score and the count, but not the patience: a resumed run may have another."""
        super().load_state_dict(state_dict | {"patience": self.patience})

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
