"""Runs side by side: what they are called, which belong together, which of their settings differ."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from t2ifb.evaluation.names import labels, short_names
from t2ifb.reporting.runs import FIGURE8, OTHER, PROVENANCE, REWARD, TABLE1, TUNING, Run
from t2ifb.reporting.settings import Value, differing, numeric, shown

KINDS = {
    TUNING: "Fine-tuning runs",
    REWARD: "Reward runs",
    TABLE1: "Table 1",
    FIGURE8: "Figure 8",
    OTHER: "Other runs",
}
NOUNS = {TUNING: "fine-tuning run", REWARD: "reward run", TABLE1: "table 1", FIGURE8: "figure 8", OTHER: "other run"}
ALPHA, BETA, RATIO = "algorithm.alpha", "algorithm.beta", "beta / alpha"
"""The optimiser ignores a common factor of alpha and beta: where both differ, their ratio is worth a setting."""
NAMED = 4
"""Settings that a run is described by in lists; the table of configurations has them all."""


@dataclass(frozen=True)
class Group:
    """Runs of one kind.

    Attributes:
        kind: One of `KINDS`.
        runs: Their numbers.
        differing: Settings that are not the same in all of them.
        labels: What the page calls each of these.
        values: Each of these in all runs, in their order.
        same: Settings that are the same in all of them.
    """

    kind: str
    runs: list[int]
    differing: list[str]
    labels: Mapping[str, str]
    values: Mapping[str, list[Value]]
    same: dict[str, Value]

    @property
    def title(self) -> str:
        """The kind in words."""
        return KINDS[self.kind]

    @property
    def named(self) -> list[str]:
        """The first of the settings that differ, without what no configuration says or what others say together."""
        return [key for key in self.differing if key not in (*PROVENANCE, RATIO)][:NAMED]

    @property
    def rewards_differ(self) -> bool:
        """Whether runs were trained on different rewards, so that `reward` and `judges` are not the same in all."""
        told = {"reward.source"} if "reward_sha256" in self.same else set()
        return any(key.partition(".")[0] in ("reward", "reward_sha256") for key in self.differing if key not in told)

    @property
    def counted(self) -> str:
        """How many runs there are, in words."""
        count, noun = len(self.runs), NOUNS[self.kind]
        return f"{count} {noun}" if count == 1 else f"{count} × {noun}" if noun[-1].isdigit() else f"{count} {noun}s"


class Comparison:
    """Some runs.

    Attributes:
        runs: In the order in which they were found.
        names: What the page calls each.
        settings: Of each, with the ratio of beta to alpha where both differ.
        groups: By kind, those that have runs.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        """Compare them; their folders are all different."""
        self.runs = list(runs)
        self.names = short_names([run.path for run in runs])
        self.settings: list[dict[str, Value]] = [dict(run.settings) for run in runs]
        self.groups = [group for kind in KINDS if (group := self._group(kind)).runs]

    def of_kind(self, kind: str) -> list[Run]:
        """The runs of one kind."""
        return [run for run in self.runs if run.kind == kind]

    def group(self, kind: str) -> Group | None:
        """The group of a kind, if there is one."""
        return next((group for group in self.groups if group.kind == kind), None)

    def about(self, number: int) -> str:
        """What tells a run apart from the others of its kind, in a few words."""
        group = next(group for group in self.groups if number in group.runs)
        settings = self.settings[number]
        return ", ".join(f"{group.labels[key]} {shown(settings.get(key))}" for key in group.named)

    def _group(self, kind: str) -> Group:
        numbers = [n for n, run in enumerate(self.runs) if run.kind == kind]
        settings = [self.settings[n] for n in numbers]
        keys = differing(settings)
        if ALPHA in keys and BETA in keys:
            for one in settings:
                one[RATIO] = _ratio(one.get(BETA), one.get(ALPHA))
            keys = differing(settings)
            if RATIO in keys:
                keys.remove(RATIO)
                keys.insert(keys.index(BETA) + 1, RATIO)
        values = {key: [one.get(key) for one in settings] for key in keys}
        same = {key: value for key, value in (settings[0].items() if settings else ()) if key not in values}
        return Group(kind, numbers, keys, labels(keys), values, same)


def _ratio(beta: Value, alpha: Value) -> Value:
    if isinstance(beta, str) or isinstance(alpha, str) or not (numeric(beta) and numeric(alpha)) or not alpha:
        return None
    ratio = float(beta or 0) / float(alpha)
    return float(f"{ratio:.6g}") if math.isfinite(ratio) else None
