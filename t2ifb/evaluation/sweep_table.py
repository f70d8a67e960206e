"""Summary of a sweep: runs sorted by the checkpoint selection score, and the Pareto front."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray
from pandas import DataFrame

from t2ifb.evaluation.tables import escape_markdown, markdown, screen, show
from t2ifb.evaluation.tuning_plots import trade_off
from t2ifb.utils.files import write_text

REWARD, REWARD_GAIN = "reward", "reward_gain"
"""The training reward, and its gain in a run without judges, which the run's files call `judges`."""
FIGURES = ("judges", REWARD_GAIN, "kl", "kl_without_last_two", "reward", "gold", "accuracy", "loss")
"""Validation metrics of the kept checkpoint that are shown, if a run has them."""


OTHER_SETTINGS = "finished with other settings"
"""State of a finished job that a restarted sweep refused, because its settings have changed."""


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        folder: Run folder.
        overrides: Command-line arguments by key.
        chosen_by: Validation metric that selected the checkpoint; higher is better. `REWARD_GAIN` without judges.
        validation: Metrics of the kept checkpoint; empty unless the job is finished with the sweep's settings.
        state: `finished`, `finished with other settings`, `failed: …` or `not finished`.
        judges: Judges with their shares of the weight, see `judge_shares`.
    """

    folder: Path
    overrides: dict[str, str]
    chosen_by: str
    validation: dict[str, float]
    state: str
    judges: str = ""

    @classmethod
    def read(cls, folder: Path) -> "Job":
        """Read a run folder."""
        given = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text(encoding="utf-8")) or []
        overrides = dict(str(text).lstrip("+").partition("=")[::2] for text in given)
        summary, failure = folder / "summary.json", folder / "failed.json"
        if failure.exists() and not summary.exists():
            error = str(json.loads(failure.read_text(encoding="utf-8"))["error"]).splitlines()[0]
            return cls(folder, overrides, "", {}, f"failed: {error}")
        if not summary.exists():
            return cls(folder, overrides, "", {}, "not finished")
        if (folder / "refused.json").exists():
            return cls(folder, overrides, "", {}, OTHER_SETTINGS)
        figures = json.loads(summary.read_text(encoding="utf-8"))
        weights, chosen_by, validation = (figures.get(name) for name in ("judge_weights", "chosen_by", "validation"))
        names = {"judges": REWARD_GAIN} if unjudged(weights or {}) else {}
        validation = {names.get(name, name): figure for name, figure in (validation or {}).items()}
        chosen_by = names.get(chosen_by, chosen_by or "")
        return cls(folder, overrides, chosen_by, validation, "finished", judge_shares(weights or {}))

    @property
    def is_placed(self) -> bool:
        """Whether the job has both a judges' gain and a KL divergence."""
        return all(math.isfinite(self.validation.get(name, math.nan)) for name in ("judges", "kl"))

    @property
    def rank(self) -> float:
        """Sort key. Jobs without a finite value come last."""
        figure = self.validation.get(self.chosen_by, -math.inf)
        return figure if math.isfinite(figure) else -math.inf


def unjudged(weights: Collection[str]) -> bool:
    """Whether a run has no judges, given their weights. Its own reward then selects the checkpoint."""
    return set(weights) == {REWARD}


def judge_shares(weights: Mapping[str, float]) -> str:
    """Judges with their shares of the weight; equal if gains of the judges are comparable, empty if unknown."""
    total = sum(weights.values())
    return ", ".join(f"{name} {weight / total:.0%}" for name, weight in sorted(weights.items()) if weight > 0)


def pareto_front(gains: NDArray[np.float64], costs: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Pareto-optimal points (N,) for high gain (N,) and low cost (N,)."""
    better = (gains[None] >= gains[:, None]) & (costs[None] <= costs[:, None])
    strictly = (gains[None] > gains[:, None]) | (costs[None] < costs[:, None])
    return np.asarray(~(better & strictly).any(1))


class SweepTable:
    """Jobs of a sweep, best first.

    Attributes:
        jobs: Jobs in sorted order.
        placed: Jobs with both a judges' gain and a KL divergence.
        judges_differ: Whether the judges or their weights differ between jobs, so that their gains are not comparable.
        on_front: Folders of the jobs on the Pareto front of judges against KL divergence. The base model is one of the
            points, so a run that is no better than the base model is not on the front. Empty if the judges differ.
    """

    def __init__(self, folder: Path, since: float = 0.0) -> None:
        """Read the run folders in a sweep's folder.

        Args:
            folder: Folder of the sweep.
            since: Start time of the sweep, in seconds since the epoch. Jobs last started before it are ignored.
        """
        self.folder = folder
        files = [file for file in sorted(folder.glob("*/.hydra/overrides.yaml")) if file.stat().st_mtime >= since - 1]
        found = [Job.read(file.parent.parent) for file in files]
        self.jobs = sorted(found, key=lambda job: -job.rank)
        self.placed = [job for job in self.jobs if job.is_placed]
        gains, costs = (np.array([0.0, *(job.validation[name] for job in self.placed)]) for name in ("judges", "kl"))
        front = pareto_front(gains, costs)[1:]
        self.judges_differ = len({job.judges for job in self.jobs} - {""}) > 1
        on_front = {job.folder for job, on_it in zip(self.placed, front, strict=True) if on_it}
        self.on_front = set() if self.judges_differ else on_front

    @property
    def unfinished(self) -> list[Job]:
        """Jobs that failed or were stopped."""
        return [job for job in self.jobs if job.state not in ("finished", OTHER_SETTINGS)]

    @property
    def title(self) -> str:
        """What the order is by, and what is not comparable."""
        text = f"{len(self.jobs)} run{'' if len(self.jobs) == 1 else 's'}"
        chosen = next((job.chosen_by for job in self.jobs if job.chosen_by), "")
        if chosen:
            by = "the gain of their own reward (no judges)" if chosen == REWARD_GAIN else chosen
            text += f", best first by {by} on validation prompts"
        if self.judges_differ:
            text += "; the judges or their weights differ, so the gains are not comparable and there is no Pareto front"
        return text

    def write(self) -> None:
        """Print the table and write it to the sweep's folder as Markdown, CSV and, for fine-tuning, a figure."""
        if not self.jobs:
            return
        varied = _varied([job.overrides for job in self.jobs])
        shown = [name for name in FIGURES if any(name in job.validation for job in self.jobs)]
        names = [job.folder.name for job in self.jobs]
        settings = [[job.overrides.get(key, "") for job in self.jobs] for key in varied]
        figures = [[str(job.validation.get(name, "")) for job in self.jobs] for name in shown]
        headings, ends = ["run", *_short(varied), *shown], []
        if self.placed and not self.judges_differ:
            headings.append("front")
            ends.append(["*" if job.folder in self.on_front else "" for job in self.jobs])
        if any(job.state != "finished" for job in self.jobs):
            headings.append("state")
            ends.append([job.state for job in self.jobs])
        rounded = [*map(_rounded, settings), *([_four_digits(cell) for cell in cells] for cells in figures)]
        exact, lines = ([*zip(names, *columns, *ends, strict=True)] for columns in ([*settings, *figures], rounded))
        show(screen(f"{self.folder}: {self.title}", headings, lines))
        escaped = [[name, *map(escape_markdown, cells)] for name, *cells in lines]
        write_text(self.folder / "sweep.md", f"{escape_markdown(self.title)}\n\n{markdown(headings, escaped)}")
        write_text(self.folder / "sweep.csv", DataFrame(exact, columns=headings).to_csv(index=False))
        (self.folder / "sweep.png").unlink(missing_ok=True)  # of an earlier start, which may have had a front
        if self.placed and not self.judges_differ:
            self._draw(varied)

    def _draw(self, varied: Sequence[str]) -> None:
        jobs = self.placed
        values = [_rounded([job.overrides.get(key, "") for job in jobs]) for key in varied]
        parts = [[f"{name}={value}" for value in column] for name, column in zip(_short(varied), values, strict=True)]
        names = [" ".join(part) for part in zip(*parts, strict=True)] if parts else [""] * len(jobs)
        kl, judges = ([job.validation[name] for job in jobs] for name in ("kl", "judges"))
        trade_off(names, kl, judges, [job.folder in self.on_front for job in jobs], self.folder / "sweep.png")


def _varied(overrides: Sequence[dict[str, str]]) -> list[str]:
    """Keys whose values differ between jobs."""
    keys = dict.fromkeys(key for some in overrides for key in some)
    return [key for key in keys if len({some.get(key) for some in overrides}) > 1]


def _short(keys: Sequence[str]) -> list[str]:
    """Last parts of keys, or whole keys where those are ambiguous."""
    last = [key.rpartition(".")[2] for key in keys]
    return [end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)]


def _rounded(values: Sequence[str]) -> list[str]:
    """Values of a setting with four digits, if different values stay different."""
    found = [_four_digits(value) for value in values]
    return found if len(set(found)) == len(set(values)) else [*values]


def _four_digits(value: str) -> str:
    """Round a number to four digits; return integers and other values unchanged."""
    try:
        return value if value.lstrip("+-").isdecimal() else f"{float(value):.4g}"
    except ValueError:
        return value
