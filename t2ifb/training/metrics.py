"""`metrics.csv`: all metrics of a run over its steps."""

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from lightning import Callback, LightningModule, Trainer

from t2ifb.training.run_folder import RunFolder
from t2ifb.utils.files import write_text


class MetricsCSV(Callback):
    """Writes one wide table: `step, wall_seconds, train/<name>, val/<name>`.

    The whole file is rewritten with every checkpoint and at the end. A resumed run drops the rows after its checkpoint
    and continues its clock.

    Attributes:
        start: Metrics of step 0, known before training.
        rows: The table so far.
    """

    def __init__(self, run: RunFolder, every: int = 10) -> None:
        """Write to a run's folder.

        Args:
            run: The run.
            every: Steps between two rows of training metrics.
        """
        self.run, self.every = run, every
        self.start: dict[str, float] = {}
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._started = time.monotonic()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Keep the rows up to the checkpoint."""
        self._started = time.monotonic() - self.seconds
        self.rows = [{"step": 0, "wall_seconds": 0.0} | self.start] if self.start else []
        if trainer.global_step and self.run.metrics.exists():
            self.rows = [row for row in read_metrics(self.run.metrics) if row["step"] <= trainer.global_step]

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Record the training metrics every few steps: of a module with `logged`, those that it logged just now."""
        if trainer.global_step % self.every == 0:
            self._note(trainer, "train/", getattr(module, "logged", None))

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Record the validation metrics."""
        if not trainer.sanity_checking:
            self._note(trainer, "val/")

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the file together with the checkpoint."""
        self.write(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the file."""
        self.write(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The clock."""
        return {"seconds": time.monotonic() - self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set the clock."""
        self.seconds = state_dict["seconds"]

    def write(self, trainer: Trainer) -> None:
        """Write the table atomically."""
        if not trainer.is_global_zero:
            return
        columns = list(dict.fromkeys(["step", "wall_seconds", *sorted({key for row in self.rows for key in row})]))
        write_text(self.run.metrics, pd.DataFrame(self.rows, columns=columns).to_csv(index=False))

    def _note(self, trainer: Trainer, prefix: str, names: Collection[str] | None = None) -> None:
        """Add metrics to the row of this step. Lightning keeps a metric until it is logged again."""
        known = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith(prefix)}
        figures = {key: value for key, value in known.items() if names is None or key in names}
        step = trainer.global_step
        if self.rows and self.rows[-1]["step"] == step:
            self.rows[-1] |= figures
        else:
            self.rows.append({"step": step, "wall_seconds": round(time.monotonic() - self._started, 3)} | figures)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a `metrics.csv`. A row lacks the metrics that were not measured, and those that were NaN."""
    rows = pd.read_csv(path).to_dict("records")
    return [{str(name): value for name, value in row.items() if pd.notna(value)} for row in rows]


def validation_figures(rows: Sequence[Mapping[str, float]], step: int) -> dict[str, float]:
    """Validation metrics of a step by name; empty without a validation.

    Args:
        rows: Rows of a `metrics.csv`.
        step: The step.
    """
    at = next((row for row in rows if row["step"] == step), {})
    return {key.removeprefix("val/"): value for key, value in at.items() if key.startswith("val/")}
