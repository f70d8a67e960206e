"""Final results of a fine-tuning run: tables, figures and a verdict."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image

from t2ifb.evaluation.comparison import HEADINGS, Gain, gains, write_gains
from t2ifb.evaluation.scoring import ScoreSheet
from t2ifb.evaluation.selection import change
from t2ifb.evaluation.statistics import Interval
from t2ifb.evaluation.tables import escape_markdown, markdown, screen, show
from t2ifb.evaluation.tuning_plots import progress_sheet, tuning_curves
from t2ifb.finetuning.evaluator import EvalSamples, Evaluator
from t2ifb.finetuning.guidance import RunGuidance
from t2ifb.training.metrics import validation_figures
from t2ifb.training.run_folder import RunFolder

SHOWN = 12
"""Number of test prompts in the figure, counted from the first."""
BY_REWARD = "the reward"
"""What chose the checkpoint of a run without held-out scorers. The judges' gain is then the reward's."""


class TuningResults:
    """Comparison of the base model with the kept and the last checkpoint, on test prompts with the same noise."""

    def __init__(
        self,
        run: RunFolder,
        evaluator: Evaluator,
        answers: Mapping[str, EvalSamples],
        rows: Sequence[Mapping[str, float]],
        trained_on: Sequence[str],
        kept: int,
        seed: int,
        guidance: RunGuidance | None = None,
    ) -> None:
        """Compare the samples of `base`, `kept` and `last`. `rows` are those of `metrics.csv`."""
        self.run, self.seed, self.guidance = run, seed, guidance
        self.chosen_by = BY_REWARD if evaluator.chosen_by.keys() <= set(trained_on) else "the held-out scorers"
        self.evaluator, self.answers, self.rows, self.kept = evaluator, answers, rows, kept
        self.gains: dict[str, list[Gain]] = {
            name: gains(answers["base"].scores, answers[name].scores, evaluator.images_per_prompt, trained_on, seed)
            for name in ("kept", "last")
        }
        self.sentence = verdict_sentence(rows, kept, self._change, self.chosen_by)

    def write(self) -> dict[str, Any]:
        """Print and save everything; return the metrics for `summary.json`."""
        run = self.run
        figures: dict[str, Any] = {
            "sentence": self.sentence,
            "kept": "base" if keeps_base(self.rows, self.kept) else "tuned",
        }
        if self.guidance is not None:
            figures["sentence"] = f"{self.guidance.sentence} {self.sentence}"
            figures["guidance"] = self.guidance.write(run)
        same = self.answers["kept"] is self.answers["last"]
        for name, rows in self.gains.items():
            if not (same and name == "last"):
                title = f"{name} checkpoint, {len(self.evaluator.prompts)} test prompts, same noise"
                show(screen(title, HEADINGS, [row.cells() for row in rows]))
            write_gains(rows, run.path, f"table_{name}")
            figures[f"test_{name}"] = {row.name: asdict(row) for row in rows}
            figures[f"test_{name}"] |= self.evaluator.kl_figures(self.answers[name])
        for name, answers in self.answers.items():
            answers.sheet(self.evaluator.prompts).write(run.samples / f"test_{name}.csv")
        print(self.sentence)
        figures["judge_weights"] = self.evaluator.chosen_by
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in self.evaluator.chosen_by.items())
        print(f"weights in checkpoint selection: {weights}")
        some = slice(0, SHOWN)
        columns = {"base": "base", "kept": f"kept, step {self.kept}", "last": "last"}
        if same:
            del columns["last"]
        sheet = {column: self.answers[name].images[some] for name, column in columns.items()}
        progress_sheet(self.evaluator.prompts[some], sheet, run.samples / "test.png")
        tuning_curves(self.rows, run.path / "tuning_curves.png")
        return figures

    def card(self, recipe: Mapping[str, Any]) -> str:
        """Settings, results and curves for the model card."""
        lines = [row.cells() for row in self.gains["kept"]]
        shown = [[name, escape_markdown(str(value))] for name, value in recipe.items()]
        figures = f"On {len(self.evaluator.prompts)} test prompts:\n\n{markdown(HEADINGS, lines)}"
        curves = "![Reward, judges and KL divergence over the updates](tuning_curves.png)"
        swept = [] if self.guidance is None else [self.guidance.card()]
        return "\n\n".join([markdown(["setting", "value"], shown), self.sentence, figures, *swept, curves])

    def warning(self, tuned_at: float) -> str:
        """First lines of the model card: the verdict, whether to use the adapters, and at which guidance scale.

        Args:
            tuned_at: Guidance scale of the training rollouts.
        """
        tested_at = self.evaluator.sampler.guidance_scale
        use_at = tested_at if self.guidance is None else self.guidance.scale
        lines = [
            f"Use these adapters at guidance scale {use_at:g}: "
            f"they were tuned at {tuned_at:g} and their checkpoint was chosen at {tested_at:g}."
        ]
        if keeps_base(self.rows, self.kept):
            better = f"Keep the base model: no checkpoint of this run is better than it by {self.chosen_by}."
            lines.insert(0, f"**{better}** These are the adapters of the best one, step {self.kept}.")
        return " ".join([*([] if self.guidance is None else [self.guidance.sentence]), *lines])

    def _change(self, earlier: int, later: int) -> Interval:
        """Change of the selection score between two validations. One is the best of all, which widens the interval."""
        validations = sum("val/judges" in row for row in self.rows)
        base, old, new = (ScoreSheet.read(self.run.step(step, ".csv")) for step in (0, earlier, later))
        return change(base, old, new, self.evaluator.chosen_by, self.seed, 1 - 0.05 / validations)

    def examples(self) -> list[dict[str, Any]]:
        """Example test prompts, one row per image."""
        return [
            {
                "prompt": self.evaluator.prompts[n],
                "image": Image.fromarray(a.images[n].permute(1, 2, 0).numpy()),
                "model": name,
            }
            for n in range(min(SHOWN, len(self.evaluator.prompts)))
            for name, a in self.answers.items()
        ]


def keeps_base(rows: Sequence[Mapping[str, float]], kept: int) -> bool:
    """Whether to keep the base model: the best checkpoint's selection score is not above it.

    Args:
        rows: Rows of `metrics.csv`.
        kept: Step of the best checkpoint.
    """
    return validation_figures(rows, kept).get("judges", float("nan")) <= 0


def verdict_sentence(
    rows: Sequence[Mapping[str, float]],
    kept: int,
    change: Callable[[int, int], Interval],
    chosen_by: str = "the held-out scorers",
) -> str:
    """Verdict on the validation prompts: changes of reward, judges and gold, and over-optimisation.

    Args:
        rows: Rows of `metrics.csv` with validation metrics; the first is the base model.
        kept: Step of the kept checkpoint.
        change: Change of the selection score between the validations at two steps. Only a fall whose interval excludes
            zero counts as over-optimisation, because the highest of several validations is always followed by lower
            ones.
        chosen_by: Name of the scorers that selected the checkpoint.
    """
    seen = [row for row in rows if "val/reward" in row]
    if len(seen) < 2:
        return "No validation took place."
    first, last = seen[0], seen[-1]
    at = next((row for row in seen if row["step"] == kept), last)
    top = max(seen, key=lambda row: row.get("val/judges", -math.inf))  # metrics that were NaN are not there
    which = f"Kept step {kept}"
    if keeps_base(rows, kept):
        which = f"Kept the base model: no checkpoint is better by {chosen_by}. The best one, step {kept}, is exported"
    kl, without = (at.get(f"val/{name}", math.nan) for name in ("kl", "kl_without_last_two"))
    distance = f"KL {kl:.2f} nats, {without:.2f} without the last two steps"
    shown = ("reward", "gold") if chosen_by == BY_REWARD else ("reward", "judges", "gold")
    text = f"{which}: {_moves(shown, first, at)}; {distance}."
    if top is not last and last["val/reward"] > top["val/reward"]:
        steps = int(top["step"]), int(last["step"])
        if change(*steps).high < 0:
            text += f" From step {steps[0]} to {steps[1]}: {_moves(shown, top, last)}: over-optimisation."
    return text


def _moves(shown: Sequence[str], before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Changes of the shown figures that both validations have, as text."""
    names = [name for name in shown if f"val/{name}" in before and f"val/{name}" in after]
    return ", ".join(f"{name} {after[f'val/{name}'] - before[f'val/{name}']:+.3f}" for name in names)
