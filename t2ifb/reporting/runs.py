"""One run folder, read as far as it can be read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from t2ifb.reporting.curves import Curves, read_curves
from t2ifb.reporting.files import Notes, number, read_json, read_yaml
from t2ifb.reporting.results import Results, read_results
from t2ifb.reporting.samples import Samples, read_samples
from t2ifb.reporting.settings import Value, flat

TUNING, REWARD, TABLE1, FIGURE8, OTHER = "tuning", "reward", "table1", "figure8", "other"
"""Kinds of runs; each has sections of its own."""
AGAINST = {
    "over-optimisation": "over-optimised later",
    "Kept the base model": "no better than base",
    "the tuned model is worse than the base model": "worse at the usual guidance",
}
"""Phrases of a verdict, and what the overview makes of them."""
KL = ("kl", "kl_without_last_two")
CHANGES = ("reward", "judges", "gold", *KL)
"""Validation figures that the overview shows, as changes from the base model."""
PROVENANCE = ("git_commit", "reward_sha256")
"""Settings that no configuration has: the commit, and the content of what a run was trained on."""
CLASSES = {"FineTuning": TUNING, "RewardTraining": REWARD, "Table1": TABLE1, "Figure8": FIGURE8}
"""What a configuration builds in a run of each kind."""


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        path: Its folder.
        kind: `TUNING`, `REWARD`, `TABLE1`, `FIGURE8` or `OTHER`.
        settings: What it was configured with, flat.
        summary: `summary.json`; empty if it is not there.
        state: `finished` if `summary.json` is there, `failed` if a sweep noted so, else `unfinished`.
        train: Training figures over the steps.
        val: Validation figures over the steps; of a fine-tuning run, step 0 is the base model.
        samples: Images of its validations.
        results: Tables that it ended with.
        notes: What of it could not be read.
    """

    path: Path
    kind: str
    settings: dict[str, Value]
    summary: dict[str, Any]
    state: str
    train: Curves
    val: Curves
    samples: list[Samples]
    results: Results
    notes: list[str] = field(default_factory=list)

    @cached_property
    def kept(self) -> float | None:
        """The step whose checkpoint was kept; so far, in a run that is not finished: where `judges` is highest.

        Step 0 is the base model, and no checkpoint.
        """
        best = number(self.summary.get("best_step"))
        known = zip(self.val.step, self.val.columns.get("judges", []), strict=False)
        judged = {step: value for step, value in known if step > 0 and value is not None}
        return max(judged, key=judged.__getitem__) if best is None and judged else best

    def changes(self, names: tuple[str, ...] = CHANGES) -> dict[str, float]:
        """How far validation figures of the kept step are from the base model's (`judges` and `KL` begin at 0)."""
        base, kept = self.val.at(0), self.val.at(self.kept)
        return {name: kept[name] - base.get(name, 0) for name in names if name in kept and _begins(name, base)}

    @property
    def sentence(self) -> str:
        """The verdict in words, where there is one."""
        text = self.summary.get("sentence")
        return text if isinstance(text, str) else ""

    @property
    def verdict(self) -> list[str]:
        """What speaks against the run, in a few words each."""
        return [words for phrase, words in AGAINST.items() if phrase in self.sentence]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show but perhaps settings."""
        return not (self.summary or self.train.step or self.val.step or self.results.any)


def read_run(path: Path) -> Run:
    """Read a run's folder; what is missing is empty, what is broken is noted."""
    notes = Notes(path)
    config = read_yaml(path / ".hydra" / "config.yaml", dict, notes) or {}
    if not config and not notes.texts:
        notes.add(path / ".hydra" / "config.yaml", "is missing; the run's settings are unknown")
    summary = read_json(path / "summary.json", dict, notes)
    trained_on = read_json(path / "reward.json", dict, notes) or {}
    curves = read_curves(path / "metrics.csv", notes)
    results = read_results(path, summary or {}, notes)
    return Run(
        path=path,
        kind=_kind(config, curves, results),
        settings=flat(config) | _provenance(summary or {}, trained_on),
        summary=summary or {},
        state=_state(path, notes),
        train=curves["train"],
        val=curves["val"],
        samples=read_samples(path / "samples", notes),
        results=results,
        notes=notes.texts,
    )


def _state(path: Path, notes: Notes) -> str:
    if (path / "summary.json").is_file():
        return "finished"
    failure = read_json(path / "failed.json", dict, notes)  # of a job of a sweep; the others went on
    if failure is None:
        return "unfinished"
    text = str(failure.get("error", "")).strip() or "for an unknown reason"
    notes.texts.append(f"failed: {text.splitlines()[0]}")
    return "failed"


def _kind(config: Mapping[str, Any], curves: Mapping[str, Curves], results: Results) -> str:
    """By what the run has; by its configuration while it has nothing."""
    measured = curves["train"].columns.keys() | curves["val"].columns.keys()
    if results.figure8:
        return FIGURE8
    if results.table1:
        return TABLE1
    if "kl" in measured or results.gains:
        return TUNING
    if "accuracy" in measured or results.accuracy:
        return REWARD
    for part in (config.get("evaluation"), config.get("algorithm")):
        if isinstance(part, Mapping):
            return CLASSES.get(str(part.get("_target_")).rpartition(".")[2], OTHER)
    return OTHER


def _provenance(summary: Mapping[str, Any], trained_on: Mapping[str, Any]) -> dict[str, Value]:
    """Those of `PROVENANCE` that are known."""
    found: dict[str, Value] = {}
    if isinstance(summary.get("git_commit"), str):
        commit = summary["git_commit"]
        found["git_commit"] = commit[:12] + ("+" if commit.endswith("+") and len(commit) > 12 else "")
    hashes = trained_on.get("hashes")
    if isinstance(hashes, Mapping) and hashes:
        found["reward_sha256"] = " ".join(str(value)[:12] for value in hashes.values())
    return found


def _begins(name: str, base: Mapping[str, float]) -> bool:
    return name in base or name in ("judges", *KL)
