"""Read one run folder as far as possible."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from t2ifb.evaluation.sweep_table import unjudged
from t2ifb.reporting.curves import Curves, read_curves
from t2ifb.reporting.files import Notes, number, read_json, read_yaml
from t2ifb.reporting.results import Results, read_results
from t2ifb.reporting.rounds import read_rounds
from t2ifb.reporting.samples import Samples, read_samples
from t2ifb.reporting.settings import Value, flat

TUNING, REWARD, TABLE1, FIGURE8 = "tuning", "reward", "table1", "figure8"
ITERATION, OTHER = "iteration", "other"
"""Kinds of runs; each has its own sections."""
AGAINST = {
    "over-optimisation": "over-optimised later",
    "Kept the base model": "no better than base",
    "The gain disappears": "gain disappears with guidance",
    "The gain turns into a loss": "gain turns into a loss with guidance",
    "The tuned model is worse than the base model": "worse than base",
    "No gain can be shown": "no gain shown",
}
"""Phrases of a verdict and their short forms in the overview."""
KL = ("kl", "kl_without_last_two")
CHANGES = ("reward", "judges", "gold", *KL)
"""Validation metrics in the overview, as changes from the base model."""
CLASSES = {
    "FineTuner": TUNING,
    "RewardTrainer": REWARD,
    "ScorerBenchmark": TABLE1,
    "ModelComparison": FIGURE8,
    "Iteration": ITERATION,
}
"""Kind of run by the component that the configuration builds."""


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        path: Run folder.
        kind: `TUNING`, `REWARD`, `TABLE1`, `FIGURE8`, `ITERATION` or `OTHER`.
        settings: Configuration, flattened.
        summary: Content of `summary.json`; empty if missing.
        state: `finished` if `summary.json` exists, `failed` if a sweep recorded a failure, else `unfinished`.
        train: Training metrics over the steps.
        val: Validation metrics over the steps; for fine-tuning, step 0 is the base model.
        samples: Images of the validations.
        results: Final tables.
        judge_weights: Weights of the judges that chose the checkpoint; only `reward` if there are none, empty if
            unknown.
        rounds: Cells of an iteration's rounds, see `read_rounds`.
        notes: Read errors.
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
    judge_weights: dict[str, float] = field(default_factory=dict)
    rounds: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def kept(self) -> float | None:
        """Step of the kept checkpoint. For an unfinished run, the step with the highest `judges` so far.

        Without judges, the reward counts. Step 0 is the base model and has no checkpoint.
        """
        best = number(self.summary.get("best_step"))
        scores = self.val.columns.get("judges") or self.val.columns.get("reward", [])
        known = zip(self.val.step, scores, strict=False)
        judged = {step: value for step, value in known if step > 0 and value is not None}
        return max(judged, key=judged.__getitem__) if best is None and judged else best

    def changes(self, names: tuple[str, ...] = CHANGES) -> dict[str, float]:
        """Change of validation metrics from the base model to the kept step (`judges` and `KL` start at 0)."""
        base, kept = self.val.at(0), self.val.at(self.kept)
        return {name: kept[name] - base.get(name, 0) for name in names if name in kept and _begins(name, base)}

    @property
    def sentence(self) -> str:
        """The verdict in words, if any."""
        text = self.summary.get("sentence")
        return text if isinstance(text, str) else ""

    @property
    def verdict(self) -> list[str]:
        """Objections against the run, in a few words each."""
        return [words for phrase, words in AGAINST.items() if phrase in self.sentence]

    @property
    def is_empty(self) -> bool:
        """Whether the run has nothing to show except settings."""
        return not (self.summary or self.train.step or self.val.step or self.results.any or self.rounds)


def read_run(path: Path) -> Run:
    """Read a run's folder. Missing files are empty, broken ones are noted."""
    notes = Notes(path)
    config = read_yaml(path / ".hydra" / "config.yaml", dict, notes)
    config = config or read_json(path / "settings.json", dict, notes) or {}  # of a run that was started from Python
    if not config and not notes.texts:
        notes.add(path / ".hydra" / "config.yaml", "is missing; the run's settings are unknown")
    summary = read_json(path / "summary.json", dict, notes)
    trained_on = read_json(path / "reward.json", dict, notes) or {}
    curves = read_curves(path / "metrics.csv", notes)
    results = read_results(path, summary or {}, notes)
    kind, val = _kind(config, curves, results), curves["val"]
    weights = _judge_weights(path, config, summary or {}, notes) if kind == TUNING else {}
    if unjudged(weights):  # `judges` is the gain of the reward itself
        val = replace(val, columns={name: column for name, column in val.columns.items() if name != "judges"})
        notes.texts.append("no judges: chosen by the reward")
    return Run(
        path=path,
        kind=kind,
        settings=flat(config) | _provenance(summary or {}, trained_on),
        summary=summary or {},
        state=_state(path, notes),
        train=curves["train"],
        val=val,
        samples=read_samples(path / "samples", notes),
        results=results,
        judge_weights=weights,
        rounds=read_rounds(path, notes),
        notes=notes.texts,
    )


def _judge_weights(path: Path, config: Mapping[str, Any], summary: Mapping[str, Any], notes: Notes) -> dict[str, float]:
    """Weights of the judges from the summary, or from the files that an unfinished run has; empty if unknown."""
    record = read_json(path / "judge_weights.json", dict, notes) or {}
    for weights in (summary.get("judge_weights"), record.get("weights")):
        if isinstance(weights, Mapping) and weights:
            return {name: known for name, value in weights.items() if (known := number(value)) is not None}
    judges = config.get("judges")
    none = isinstance(judges, Mapping) and all(judge is None for judge in judges.values())
    return {"reward": 1.0} if none else {}


def _state(path: Path, notes: Notes) -> str:
    if os.path.isfile(path / "summary.json"):
        return "finished"
    failure = read_json(path / "failed.json", dict, notes)  # from a failed job of a sweep
    if failure is None:
        return "unfinished"
    text = str(failure.get("error", "")).strip() or "for an unknown reason"
    notes.texts.append(f"failed: {text.splitlines()[0]}")
    return "failed"


def _kind(config: Mapping[str, Any], curves: Mapping[str, Curves], results: Results) -> str:
    """Kind of run from its results, or from its configuration if it has none."""
    measured = curves["train"].columns.keys() | curves["val"].columns.keys()
    if results.figure8:
        return FIGURE8
    if results.table1:
        return TABLE1
    if "kl" in measured or results.gains:
        return TUNING
    if "accuracy" in measured or results.accuracy:
        return REWARD
    for part in (config.get("evaluation"), config.get("iteration"), config.get("algorithm")):
        if isinstance(part, Mapping):
            return CLASSES.get(str(part.get("_target_")).rpartition(".")[2], OTHER)
    return OTHER


def _provenance(summary: Mapping[str, Any], trained_on: Mapping[str, Any]) -> dict[str, Value]:
    """Known entries of `settings.PROVENANCE`."""
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
