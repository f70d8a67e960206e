"""Rules by which a guard may keep a checkpoint without looking at gold, and how good what they keep is by gold."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.held_out import JUDGES, Course
from experiments.runs import Run
from t2ifb.evaluation.guard import guarded
from t2ifb.evaluation.statistics import bootstrap_interval

Rule = Callable[[Course], int]
"""Takes what validations of a run saw, gives the number of the one whose state is kept (not 0, the base model)."""


OTHER_ENCODERS = ("blip_score", "image_reward")
"""Judges that see images by another encoder than the reward's."""


def rises(course: Course, *names: str) -> NDArray[np.float64]:
    """(S, len(names)) how far scorers rose at each validation."""
    return np.array([[of_step[name] for name in names] for of_step in course.rises])


def best(values: Sequence[float] | NDArray[np.float64]) -> int:
    """The number of the highest value after the first."""
    return 1 + int(np.argmax(values[1:]))


def highest(*names: str) -> Rule:
    """The validation at which the mean of some scorers is highest."""
    return lambda course: best(rises(course, *names).mean(1))


def near_the_worst(margin: float) -> Rule:
    """The validation at which the mean of the judges is highest, none above the worst judge by more than a margin."""
    return lambda course: best(guarded(rises(course, *course.judged_by), margin))


def before_the_first_fall(course: Course) -> int:
    """The last validation before the judges' mean falls for the first time."""
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
"""What each keeps: where this is highest, unless it says something else."""


def kept(runs: Sequence[Run], rule: Rule) -> dict[str, Any] | None:
    """Gold above the base model in what a rule keeps: the mean over runs with its interval, and the worst run.

    Rules choose on the same images that gold is then read from, so that all of them, and the one that looks at gold
    most, do a little better here than on fresh prompts. The interval is over runs, which share their prompts. None if
    the rule needs a judge that the runs do not have.
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
