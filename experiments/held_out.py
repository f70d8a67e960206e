"""Held-out scores of tuned models, read from run folders and compared with the base model."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.runs import Run
from t2ifb.evaluation.scoring import ScoreSheet
from t2ifb.evaluation.selection import normalized_gain, selection_score
from t2ifb.evaluation.statistics import paired_difference
from t2ifb.training.metrics import read_metrics

JUDGES = ("clip_score", "aesthetic_score", "blip_score", "image_reward")
GOLD = ("gold", "gold/alignment", "gold/fidelity")
KL = ("kl", "kl_without_last_two")

Scores = dict[str, NDArray[np.float64]]
"""Scores by scorer, and the KL divergence by the names in `KL`: one value per prompt, the mean over its images."""


def read_scores(path: Path) -> Scores:
    """Scores per prompt that a run wrote to `samples/`."""
    return ScoreSheet.read(path).by_prompt


@dataclass(frozen=True)
class Course:
    """Validation results of a run.

    Attributes:
        steps: S update numbers, starting at 0 (the base model).
        scores: Scores at each step.
        rises: At each step, by scorer: gain of the mean over the base model, in standard deviations over its images.
        diversity: Diversity at each step.
        seconds_per_update: Seconds per update, without validations.
        seconds: Seconds until the last row of metrics, including validations.
        weights: Weights of the judges in the selection score, by name; 1 by default.
    """

    steps: list[int]
    scores: list[Scores]
    rises: list[dict[str, float]]
    diversity: list[float]
    seconds_per_update: float
    seconds: float
    weights: dict[str, float]

    @classmethod
    def of(cls, run: Run) -> "Course":
        """Read the results of a run."""
        files = sorted((run.path / "samples").glob("step_*.csv"))
        sheets = list(map(ScoreSheet.read, files))
        steps = [int(file.stem.removeprefix("step_")) for file in files]
        rows = read_metrics(run.path / "metrics.csv")
        noted = {row["step"]: row.get("val/diversity", math.nan) for row in rows}
        diversity = [noted.get(step, math.nan) for step in steps]
        base = sheets[0].columns
        rises = [
            {name: normalized_gain(base[name], column) for name, column in sheet.columns.items()} for sheet in sheets
        ]
        scores, seconds = [sheet.by_prompt for sheet in sheets], rows[-1]["wall_seconds"]
        weights = run.summary.get("judge_weights", {}) if run.finished else {}
        return cls(steps, scores, rises, diversity, pace(run), seconds, weights)

    @property
    def judged_by(self) -> list[str]:
        """Judges of the run, without its training reward."""
        return [name for name in JUDGES if name in self.scores[0]]

    @property
    def judges(self) -> list[float]:
        """Selection score at each step."""
        weights = [self.weights.get(name, 1.0) for name in self.judged_by]
        return [
            float(selection_score([rises[name] for name in self.judged_by], weights=weights)) for rises in self.rises
        ]


def courses(runs: Sequence[Run]) -> dict[str, Any]:
    """Results of runs that differ in their seed: gains over the base model at each validation."""
    seen = [Course.of(run) for run in runs]
    if any(course.steps != seen[0].steps for course in seen):
        raise SystemExit(f"the runs beside {runs[0].path} were validated at different steps; delete the old ones")
    places = range(len(seen[0].steps))
    base = [course.scores[0] for course in seen]
    return {
        "steps": seen[0].steps,
        "seconds_per_update": [each if np.isfinite(each := course.seconds_per_update) else None for course in seen],
        "seconds": [course.seconds for course in seen],
        **{name: [[float(course.scores[at][name].mean()) for course in seen] for at in places] for name in KL},
        "judges": [[course.judges[at] for course in seen] for at in places],
        "gain": {
            name: [gain(base, [course.scores[at] for course in seen], name) for at in places] for name in _scorers(base)
        },
    }


def tested(runs: Sequence[Run], state: str) -> dict[str, Any]:
    """Test results of runs that differ in their seed: gains of a state over the base model.

    Args:
        runs: Finished runs.
        state: `kept` or `last`.
    """
    base, tuned = ([read_scores(run.path / f"samples/test_{name}.csv") for run in runs] for name in ("base", state))
    return {
        "prompts": len(base[0]["gold"]),
        **{name: [float(scores[name].mean()) for scores in tuned] for name in KL},
        "base": {name: float(np.mean([scores[name].mean() for scores in base])) for name in _scorers(base)},
        "gain": {name: gain(base, tuned, name) for name in _scorers(base)},
    }


def difference(one: Sequence[Run], other: Sequence[Run], state: str, of_other: str | None = None) -> dict[str, Any]:
    """Difference in test gains between two sets of runs, seed by seed on the same prompts and noise.

    Args:
        one: Finished runs that differ in their seed.
        other: The same number of runs, or the same runs.
        state: `kept` or `last`.
        of_other: State of the other runs; the same by default.
    """
    states = (one, state), (other, of_other or state)
    return _apart(*([read_scores(run.path / f"samples/test_{of}.csv") for run in runs] for runs, of in states))


def at_end(one: Sequence[Run], other: Sequence[Run]) -> dict[str, Any]:
    """Difference of the last validations, on validation prompts."""
    return _apart(*([Course.of(run).scores[-1] for run in runs] for runs in (one, other)))


def _apart(one: Sequence[Scores], other: Sequence[Scores]) -> dict[str, Any]:
    return {name: gain(other, one, name) for name in (*_scorers([*one, *other]), *KL)}


def _scorers(scores: Sequence[Scores]) -> list[str]:
    """Scorers that all sides have, with reward and gold first."""
    return [name for name in ("reward", *GOLD, *JUDGES) if all(name in each for each in scores)]


def pace(run: Run) -> float:
    """Seconds per update: median over intervals between two rows of training metrics without a validation."""
    rows = [row for row in read_metrics(run.path / "metrics.csv") if {"train/reward", "val/reward"} & row.keys()]
    stretches = [
        (after["wall_seconds"] - before["wall_seconds"]) / (after["step"] - before["step"])
        for before, after in zip(rows, rows[1:], strict=False)
        if "train/reward" in before and "train/reward" in after and "val/reward" not in before
    ]
    return float(np.median(stretches)) if stretches else float("nan")


def gain(base: Sequence[Scores], tuned: Sequence[Scores], name: str) -> dict[str, Any]:
    """Change of a scorer from one side to the other, paired over prompts: per seed, and averaged over seeds.

    The interval of the average is also over prompts and does not cover other seeds.
    """
    pairs = [(after[name], before[name]) for before, after in zip(base, tuned, strict=True)]
    together = paired_difference(*(np.mean(side, 0) for side in zip(*pairs, strict=True)))
    return {"seeds": [asdict(paired_difference(*pair)) for pair in pairs], "over_seeds": asdict(together)}
