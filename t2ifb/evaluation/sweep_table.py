"""Summary of a sweep: runs sorted by the checkpoint selection score, and the Pareto front."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray
from pandas import DataFrame

from t2ifb.evaluation.tables import markdown, screen, show
from t2ifb.evaluation.tuning_plots import trade_off
from t2ifb.utils.files import write_text

FIGURES = ("judges", "kl", "kl_without_last_two", "reward", "gold", "accuracy", "loss")
"""Validation metrics of the kept checkpoint that are shown, if a run has them."""


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        folder: Run folder.
        overrides: Command-line arguments by key.
        chosen_by: Validation metric that selected the checkpoint; higher is better.
        validation: Metrics of the kept checkpoint; empty if the job is not finished.
        state: `finished`, `failed: …` or `not finished`.
    """

    folder: Path
    overrides: dict[str, str]
    chosen_by: str
    validation: dict[str, float]
    state: str

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
        figures = json.loads(summary.read_text(encoding="utf-8"))
        return cls(folder, overrides, figures.get("chosen_by", ""), figures.get("validation", {}), "finished")

    @property
    def is_placed(self) -> bool:
        """Whether the job has both a judges' gain and a KL divergence."""
        return all(math.isfinite(self.validation.get(name, math.nan)) for name in ("judges", "kl"))

    @property
    def rank(self) -> float:
        """Sort key. Jobs without a finite value come last."""
        figure = self.validation.get(self.chosen_by, -math.inf)
        return figure if math.isfinite(figure) else -math.inf


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
        on_front: Folders of the jobs on the Pareto front of judges against KL divergence. The base model is one of the
            points, so a run that is no better than the base model is not on the front.
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
        self.on_front = {job.folder for job, on_it in zip(self.placed, front, strict=True) if on_it}

    @property
    def unfinished(self) -> list[Job]:
        """Jobs that failed or were stopped."""
        return [job for job in self.jobs if job.state != "finished"]

    def write(self) -> None:
        """Print the table and write it to the sweep's folder as Markdown, CSV and, for fine-tuning, a figure."""
        if not self.jobs:
            return
        varied = _varied([job.overrides for job in self.jobs])
        shown = [name for name in FIGURES if any(name in job.validation for job in self.jobs)]
        headings = ["run", *_short(varied), *shown, *(["front"] if self.placed else [])]
        headings += ["state"] if self.unfinished else []
        exact = [
            [
                job.folder.name,
                *(job.overrides.get(key, "") for key in varied),
                *(str(job.validation.get(name, "")) for name in shown),
                *([("*" if job.folder in self.on_front else "")] if self.placed else []),
                *([job.state] if self.unfinished else []),
            ]
            for job in self.jobs
        ]
        numbers = range(1, 1 + len(varied) + len(shown))
        lines = [[_rounded(text) if n in numbers else text for n, text in enumerate(line)] for line in exact]
        chosen = next((job.chosen_by for job in self.jobs if job.chosen_by), "")
        by = f", best first by {chosen} on validation prompts" if chosen else ""
        show(screen(f"{self.folder}: {len(self.jobs)} runs{by}", headings, lines))
        write_text(self.folder / "sweep.md", markdown(headings, lines))
        write_text(self.folder / "sweep.csv", DataFrame(exact, columns=headings).to_csv(index=False))
        if self.placed:
            self._draw(varied)

    def _draw(self, varied: Sequence[str]) -> None:
        jobs = self.placed
        short = dict(zip(varied, _short(varied), strict=True))
        names = [" ".join(f"{short[key]}={_rounded(job.overrides.get(key, ''))}" for key in varied) for job in jobs]
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


def _rounded(value: str) -> str:
    """Round a number to four digits; return other values unchanged."""
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value
