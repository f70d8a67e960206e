"""Rules that select a checkpoint without gold, and the gold of the selected checkpoints."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.held_out import JUDGES, Course
from experiments.runs import Run
from t2ifb.evaluation.selection import selection_score
from t2ifb.evaluation.statistics import bootstrap_interval

Rule = Callable[[Course], int]
"""Maps the validation results of a run to the index of the kept validation (not 0, the base model)."""


OTHER_ENCODERS = ("blip_score", "image_reward")
"""Judges with another encoder than the reward's."""


def rises(course: Course, *names: str) -> NDArray[np.float64]:
    """Gains of scorers at each validation, (S, len(names))."""
    return np.array([[of_step[name] for name in names] for of_step in course.rises])


def best(values: Sequence[float] | NDArray[np.float64]) -> int:
    """Index of the highest value after the first."""
    return 1 + int(np.argmax(values[1:]))


def highest(*names: str) -> Rule:
    """Select the validation with the highest mean of the given scorers."""
    return lambda course: best(rises(course, *names).mean(1))


def near_the_worst(margin: float) -> Rule:
    """Select the validation with the highest mean of the judges, capped at the worst judge plus a margin."""
    return lambda course: best(selection_score(rises(course, *course.judged_by), margin))


def before_the_first_fall(course: Course) -> int:
    """Select the last validation before the judges' mean falls for the first time."""
    falls = np.flatnonzero(np.diff(rises(course, *course.judged_by).mean(1)) < 0)
    return max(1, int(falls[0])) if len(falls) else len(course.steps) - 1


RULES: dict[str, Rule] = {
    "mean of the judges": near_the_worst(np.inf),
    **{f"mean, at most {margin:g} above the worst": near_the_worst(margin) for margin in (1.0, 0.5, 0.25)},
    "worst judge": near_the_worst(0.0),
    "median of the judges": lambda course: best(np.median(rises(course, *course.judged_by), 1)),
    "mean of the judges with other encoders": highest(*OTHER_ENCODERS),
    **{name: highest(name) for name in JUDGES},
    "mean of judges and reward": lambda course: best(
        rises(course, *course.judged_by).mean(1) + rises(course, "reward")[:, 0]
    ),
    "before the judges' mean first falls": before_the_first_fall,
    "diversity": lambda course: best(course.diversity),
    "smallest KL (the first)": lambda course: 1,
    "reward": highest("reward"),
    "the last": lambda course: len(course.steps) - 1,
    "gold (looks)": highest("gold"),
}
"""Rules by name. A rule keeps the validation with the highest value, unless its name says otherwise."""


def kept(runs: Sequence[Run], rule: Rule) -> dict[str, Any] | None:
    """Gain in gold of the checkpoints that a rule keeps: mean over runs with interval, and the worst run.

    Rules select on the same images that gold is read from, so all of them, and most of all the rule that uses gold, do
    a little better here than on fresh prompts. The interval is over runs, which share their prompts. None if the rule
    needs a judge that the runs do not have.
    """
    courses = [Course.of(run) for run in runs]
    try:
        numbers = [rule(course) for course in courses]
    except KeyError:
        return None
    scores = [(course.scores[number], course.scores[0]) for course, number in zip(courses, numbers, strict=True)]
    chosen = np.array([(after["gold"] - before["gold"]).mean() for after, before in scores])
    interval = bootstrap_interval(chosen)
    return {"gold": interval.mean, "low": interval.low, "high": interval.high, "worst": float(chosen.min())}
