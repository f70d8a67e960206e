"""Final comparison of a fine-tuning run at the base model's usual guidance scale."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from t2ifb.evaluation.gains import HEADINGS, Gain, gains, write_gains
from t2ifb.evaluation.guard import change
from t2ifb.evaluation.statistics import Interval
from t2ifb.evaluation.table_text import markdown, screen, show
from t2ifb.evaluation.tuning_figures import progress_sheet
from t2ifb.learning.exam import Answers, Exam
from t2ifb.learning.run_folder import RunFolder

SHOWN = 12
"""Number of test prompts in the figure, counted from the first."""


@dataclass(frozen=True)
class UsualGuidance:
    """Comparison of base model and kept adapters at the usual guidance scale, on test prompts with the same noise.

    A run is validated and tested at the scale of its own `sampling`. Adapters that gain at that scale may lose at the
    usual one.

    Attributes:
        exam: Evaluation with the usual scale.
        answers: Samples of `base` and `kept`.
        trained_on: Names of the scorers that the run is trained on.
        seed: Seed of the bootstrap.
    """

    exam: Exam
    answers: Mapping[str, Answers]
    trained_on: tuple[str, ...]
    seed: int

    @property
    def scale(self) -> float:
        """The guidance scale."""
        return self.exam.sampler.guidance_scale

    @property
    def gains(self) -> list[Gain]:
        """Gain by each scorer."""
        base, kept = (self.answers[name].scores for name in ("base", "kept"))
        return gains(base, kept, self.exam.images_per_prompt, self.trained_on, self.seed)

    @property
    def sentence(self) -> str:
        """Whether the tuned model is better or worse than the base model, by gold or, without gold, by the judges."""
        base, kept = (self.answers[name].sheet(self.exam.prompts) for name in ("base", "kept"))
        of_scorer = {row.name: row.difference for row in self.gains}
        found = {"gold": of_scorer["gold"]} if "gold" in of_scorer else {}
        if not self.exam.chosen_by.keys() <= set(self.trained_on):
            found["judges"] = change(base, base, kept, self.exam.chosen_by, self.seed)
        found |= {name: of_scorer[name] for name in self.trained_on}
        return usual_guidance_sentence(self.scale, found, len(set(self.exam.prompts)))

    def write(self, run: RunFolder) -> dict[str, Any]:
        """Print and save everything; return the metrics for `summary.json`."""
        prompts = self.exam.prompts
        title = f"kept checkpoint at guidance {self.scale:g}, {len(set(prompts))} test prompts, same noise"
        show(screen(title, HEADINGS, [row.cells() for row in self.gains]))
        print(self.sentence)
        write_gains(self.gains, run.path, "table_kept_usual_guidance")
        for name, answers in self.answers.items():
            answers.sheet(prompts).write(run.samples / f"test_usual_guidance_{name}.csv")
        some = slice(0, SHOWN)
        columns = {f"{name}, guidance {self.scale:g}": self.answers[name].images[some] for name in self.answers}
        progress_sheet(prompts[some], columns, run.samples / "test_usual_guidance.png")
        return {
            "guidance_scale": self.scale,
            "prompts": len(set(prompts)),
            "sentence": self.sentence,
            **self.exam.kl_figures(self.answers["kept"]),
            **{row.name: asdict(row) for row in self.gains},
        }

    def card(self) -> str:
        """Table for the model card."""
        lines = [row.cells() for row in self.gains]
        return f"{self.sentence}\n\n{markdown(HEADINGS, lines)}"


def usual_guidance_sentence(scale: float, changes: Mapping[str, Interval], prompts: int) -> str:
    """Result of the comparison at the usual guidance scale in words. The first metric decides.

    Args:
        scale: The guidance scale.
        changes: Changes from the base model to the tuned one, with 95 % intervals, by metric.
        prompts: Number of prompts.
    """
    first = next(iter(changes.values()))
    verdict = "no different from the base model beyond chance"
    if first.excludes_zero:
        verdict = f"{'better' if first.mean > 0 else 'worse'} than the base model"
    figures = ", ".join(
        f"{name} {each.mean:+.3f} [{each.low:+.3f}, {each.high:+.3f}]" for name, each in changes.items()
    )
    return f"At guidance {scale:g} the tuned model is {verdict}: {figures} ({prompts} test prompts)."
