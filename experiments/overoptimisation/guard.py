"""Rules by which a guard may keep a checkpoint without looking at gold, and how good what they keep is by gold."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.held_out import JUDGES, Course
from experiments.runs import Run
from t2ifb.evaluation.statistics import bootstrap_interval

Rule = Callable[[Course], int]
"""Takes what validations of a run saw, gives the number of the one whose state is kept (not 0, the base model)."""


def standardised(course: Course, name: str) -> NDArray[np.float64]:
    """(S,) mean gain of a scorer at each validation, in standard deviations of the base model's scores."""
    base = course.scores[0][name]
    return np.array([(scores[name] - base).mean() for scores in course.scores]) / base.std()


def best(values: NDArray[np.float64]) -> int:
    """The number of the highest value after the first."""
    return 1 + int(np.argmax(values[1:]))


def judges(course: Course) -> NDArray[np.float64]:
    """(4, S) gains of the judges."""
    return np.stack([standardised(course, name) for name in JUDGES])


def highest(name: str) -> Rule:
    """The validation at which a scorer is highest."""
    return lambda course: best(standardised(course, name))


def before_the_first_fall(course: Course) -> int:
    """The last validation before the judges' mean falls for the first time."""
    falls = np.flatnonzero(np.diff(course.judges) < 0)
    return max(1, int(falls[0])) if len(falls) else len(course.judges) - 1


RULES: dict[str, Rule] = {
    "highest mean of the judges": lambda course: best(np.array(course.judges)),
    "highest worst judge": lambda course: best(judges(course).min(0)),
    **{f"highest {name}": highest(name) for name in JUDGES},
    "highest mean of judges and reward": lambda course: best(course.judges + standardised(course, "reward")),
    "before the judges' first fall": before_the_first_fall,
    "smallest KL (first)": lambda course: 1,
    "highest reward": highest("reward"),
    "last": lambda course: len(course.steps) - 1,
    "highest gold (looks)": highest("gold"),
}


def kept(runs: Sequence[Run], rule: Rule) -> dict[str, Any]:
    """Gold above the base model in what a rule keeps: the mean over runs with its interval, and the worst run.

    Rules choose on the same images that gold is then read from, so that all of them, and the one that looks at gold
    most, do a little better here than on fresh prompts. The interval is over runs, which share their prompts.
    """
    courses = [Course.of(run) for run in runs]
    gold = [
        np.array([(scores["gold"] - course.scores[0]["gold"]).mean() for scores in course.scores]) for course in courses
    ]
    chosen = np.array([values[rule(course)] for values, course in zip(gold, courses, strict=True)])
    interval = bootstrap_interval(chosen)
    return {"gold": interval.mean, "low": interval.low, "high": interval.high, "worst": float(chosen.min())}
