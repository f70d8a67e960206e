"""The over-optimisation guard: what a run keeps, when it stops, and what happened, in one sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer

from t2ifb.evaluation.figures import progress_sheet
from t2ifb.learning.exam import Exam
from t2ifb.learning.run_folder import RunFolder

SHOWN = 8
"""Prompts in the pictures."""


class TuningWatch(Callback):
    """Draws the held-out images of each validation, and stops a run whose judges do not rise any more.

    The checkpoint with the highest `val/judges` is kept: the mean over the judges of how far each rose above the base
    model, in standard deviations of its scores of the base model's images. Neither the reward nor gold has a say.
    """

    def __init__(self, run: RunFolder, exam: Exam, patience: int | None = None) -> None:
        """Watch a run.

        Args:
            run: Pictures go to its `samples/`.
            exam: What validations look at.
            patience: Validations without a better one after which the run stops; never by default.
        """
        self.run, self.exam, self.patience = run, exam, patience
        self.best, self.waited = float("-inf"), 0

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Look at what was found."""
        figures = trainer.callback_metrics
        judged = float(figures["val/judges"])
        self.best, self.waited = (judged, 0) if judged > self.best else (self.best, self.waited + 1)
        if self.patience is not None and self.waited >= self.patience:
            trainer.should_stop = True
        if trainer.is_global_zero and self.exam.last is not None and self.exam.base is not None:
            step = self.exam.images_per_prompt
            some = slice(0, SHOWN * step, step)
            progress_sheet(
                self.exam.prompts[some],
                {"base": self.exam.base.images[some], f"step {trainer.global_step}": self.exam.last.images[some]},
                self.run.samples / f"step_{trainer.global_step:06d}.png",
            )

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.best, self.waited = state_dict["best"], state_dict["waited"]


def verdict_sentence(rows: Sequence[Mapping[str, Any]], kept: int) -> str:
    """What happened on the validation prompts: how reward, judges and gold moved, and from where on they parted.

    Args:
        rows: Of `metrics.csv`, those with validation figures; the first is the base model's.
        kept: The step whose checkpoint was kept.
    """
    looked = [row for row in rows if row.get("val/reward") not in ("", None)]
    if len(looked) < 2:
        return "No validation took place."
    seen = [{key: float(value) for key, value in row.items() if value not in ("", None)} for row in looked]
    first, last = seen[0], seen[-1]
    at = next((row for row in seen if int(row["step"]) == kept), last)
    top = max(seen, key=lambda row: row["val/judges"])
    text = f"Kept step {kept}: {_moves(first, at)}; KL {at['val/kl']:.2f} nats."
    if top["step"] < last["step"] and last["val/reward"] > top["val/reward"]:
        text += f" From step {int(top['step'])} to {int(last['step'])}: {_moves(top, last)}: over-optimisation."
    if at["val/judges"] <= 0:
        text += " It is no better than the base model by its judges."
    return text


def _moves(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """How each of reward, judges and gold moved."""
    names = [name for name in ("reward", "judges", "gold") if f"val/{name}" in before]
    return ", ".join(f"{name} {after[f'val/{name}'] - before[f'val/{name}']:+.3f}" for name in names)
