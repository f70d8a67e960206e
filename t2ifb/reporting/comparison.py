"""Comparison of runs: names, groups and differing settings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from t2ifb.evaluation.run_names import labels, short_names
from t2ifb.reporting.runs import FIGURE8, ITERATION, OTHER, REWARD, TABLE1, TUNING, Run
from t2ifb.reporting.settings import PROVENANCE, Value, differing, numeric, shown

KINDS = {
    TUNING: "Fine-tuning runs",
    REWARD: "Reward runs",
    TABLE1: "Table 1",
    FIGURE8: "Figure 8",
    ITERATION: "Iterations",
    OTHER: "Other runs",
}
NOUNS = {
    TUNING: "fine-tuning run",
    REWARD: "reward run",
    TABLE1: "table 1",
    FIGURE8: "figure 8",
    ITERATION: "iteration",
    OTHER: "other run",
}
ALPHA, BETA, RATIO = "algorithm.alpha", "algorithm.beta", "beta / alpha"
"""AdamW is scale-invariant, so only the ratio of beta and alpha matters. It is shown where both differ."""
NAMED = 4
"""Number of settings that describe a run in lists; the table of configurations has all."""


@dataclass(frozen=True)
class Group:
    """Runs of one kind.

    Attributes:
        kind: One of `KINDS`.
        runs: Numbers of the runs.
        differing: Settings that differ between the runs whose settings are known.
        labels: Display names of the differing settings.
        values: Values of the differing settings in all runs, in order.
        same: Settings that are equal in all runs where they are known.
        rewards_differ: Whether the rewards differ, so that `reward` and `judges` are not comparable between runs.
    """

    kind: str
    runs: list[int]
    differing: list[str]
    labels: Mapping[str, str]
    values: Mapping[str, list[Value]]
    same: dict[str, Value]
    rewards_differ: bool

    @property
    def title(self) -> str:
        """Heading of the group."""
        return KINDS[self.kind]

    @property
    def named(self) -> list[str]:
        """The first differing settings, without provenance and without values that follow from others."""
        return [key for key in self.differing if key not in (*PROVENANCE, RATIO)][:NAMED]

    @property
    def counted(self) -> str:
        """Number of runs, in words."""
        count, noun = len(self.runs), NOUNS[self.kind]
        return f"{count} {noun}" if count == 1 else f"{count} × {noun}" if noun[-1].isdigit() else f"{count} {noun}s"


class Comparison:
    """Runs to compare.

    Attributes:
        runs: Runs in the order of discovery.
        names: Names of the runs on the page.
        settings: Settings of each run, with the ratio of beta to alpha where both differ.
        groups: Non-empty groups by kind.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        """Compare runs in different folders."""
        self.runs = list(runs)
        self.names = short_names([run.path for run in runs])
        self.settings: list[dict[str, Value]] = [dict(run.settings) for run in runs]
        self.groups = [group for kind in KINDS if (group := self._group(kind)).runs]

    def of_kind(self, kind: str) -> list[Run]:
        """The runs of one kind."""
        return [run for run in self.runs if run.kind == kind]

    def group(self, kind: str) -> Group | None:
        """The group of a kind, or None."""
        return next((group for group in self.groups if group.kind == kind), None)

    def about(self, number: int) -> str:
        """Short description of what distinguishes a run from others of its kind."""
        group = next(group for group in self.groups if number in group.runs)
        settings = self.settings[number]
        return ", ".join(f"{group.labels[key]} {shown(settings.get(key))}" for key in group.named)

    def _group(self, kind: str) -> Group:
        numbers = [n for n, run in enumerate(self.runs) if run.kind == kind]
        settings = [self.settings[n] for n in numbers]
        keys = differing(settings)
        if ALPHA in keys and BETA in keys:
            for one in (each for each in settings if ALPHA in each or BETA in each):
                one[RATIO] = _ratio(one.get(BETA), one.get(ALPHA))
            keys = differing(settings)
            if RATIO in keys:
                keys.remove(RATIO)
                keys.insert(keys.index(BETA) + 1, RATIO)
        values = {key: [one.get(key) for one in settings] for key in keys}
        same = {key: value for one in reversed(settings) for key, value in one.items() if key not in values}
        return Group(kind, numbers, keys, labels(keys), values, same, _rewards_differ(keys, settings))


def _rewards_differ(differing: Sequence[str], settings: Sequence[Mapping[str, Value]]) -> bool:
    """Rewards from different sources are equal if the hashes of all runs are."""
    told = {"reward.source"} if all("reward_sha256" in one for one in settings) else set()
    return any(key.partition(".")[0] in ("reward", "reward_sha256") for key in differing if key not in told)


def _ratio(beta: Value, alpha: Value) -> Value:
    if isinstance(beta, str) or isinstance(alpha, str) or not (numeric(beta) and numeric(alpha)) or not alpha:
        return None
    ratio = float(beta or 0) / float(alpha)
    return float(f"{ratio:.6g}") if math.isfinite(ratio) else None
