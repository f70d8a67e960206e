"""The end of a sweep: its runs sorted by the rule that chose their checkpoints, and the Pareto front."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rich
from numpy.typing import NDArray

from t2ifb.data.files import atomic_write
from t2ifb.evaluation.figures import trade_off
from t2ifb.evaluation.table_text import markdown, screen

FIGURES = ("judges", "kl", "reward", "gold", "accuracy", "loss")
"""Of the kept checkpoint on validation prompts: what is shown of those that a run has."""


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        folder: Its run folder.
        overrides: Its arguments by key.
        chosen_by: Which validation figure its checkpoint was chosen by, the higher the better.
        validation: The kept checkpoint's figures; empty for a job that is not finished.
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
        lines = (folder / ".hydra" / "overrides.yaml").read_text(encoding="utf-8").splitlines()
        given = [line[2:].strip("'\"").lstrip("+") for line in lines if line.startswith("- ")]
        overrides = dict(text.partition("=")[::2] for text in given)
        summary, failure = folder / "summary.json", folder / "failed.json"
        if summary.exists():
            figures = json.loads(summary.read_text(encoding="utf-8"))
            return cls(folder, overrides, figures.get("chosen_by", ""), figures.get("validation", {}), "finished")
        state = "not finished"
        if failure.exists():
            state = "failed: " + str(json.loads(failure.read_text(encoding="utf-8"))["error"]).splitlines()[0]
        return cls(folder, overrides, "", {}, state)

    @property
    def rank(self) -> float:
        """What jobs are sorted by."""
        return self.validation.get(self.chosen_by, float("-inf"))


def pareto_front(gains: NDArray[np.float64], costs: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) which points no other is at least as good as in both: a higher gain (N,) and a lower cost (N,)."""
    better = (gains[None] >= gains[:, None]) & (costs[None] <= costs[:, None])
    strictly = (gains[None] > gains[:, None]) | (costs[None] < costs[:, None])
    return np.asarray(~(better & strictly).any(1))


class SweepTable:
    """The jobs of a sweep, the best first.

    Attributes:
        jobs: Sorted.
        on_front: Folders of those on the Pareto front of judges against KL divergence.
    """

    def __init__(self, folder: Path) -> None:
        """Read the run folders in a sweep's folder."""
        self.folder = folder
        found = [Job.read(path.parent.parent) for path in sorted(folder.glob("*/.hydra/overrides.yaml"))]
        self.jobs = sorted(found, key=lambda job: -job.rank)
        both = [job for job in self.jobs if {"judges", "kl"} <= job.validation.keys()]
        gains, costs = (np.array([job.validation[name] for job in both]) for name in ("judges", "kl"))
        self.on_front = {job.folder for job, front in zip(both, pareto_front(gains, costs), strict=True) if front}

    @property
    def unfinished(self) -> list[Job]:
        """Jobs that failed or were not reached."""
        return [job for job in self.jobs if job.state != "finished"]

    def write(self) -> None:
        """Show the table, and write it into the sweep's folder as Markdown, CSV and, for fine-tuning, a picture."""
        if not self.jobs:
            return
        varied = _varied([job.overrides for job in self.jobs])
        shown = [name for name in FIGURES if any(name in job.validation for job in self.jobs)]
        headings = ["run", *_short(varied), *shown, *(["front"] if self.on_front else [])]
        headings += ["state"] if self.unfinished else []
        lines = [
            [
                job.folder.name,
                *(_rounded(job.overrides.get(key, "")) for key in varied),
                *(f"{job.validation[name]:.3g}" if name in job.validation else "" for name in shown),
                *([("*" if job.folder in self.on_front else "")] if self.on_front else []),
                *([job.state] if self.unfinished else []),
            ]
            for job in self.jobs
        ]
        chosen = next((job.chosen_by for job in self.jobs if job.chosen_by), "")
        by = f", best first by {chosen} on validation prompts" if chosen else ""
        rich.print(screen(f"{self.folder}: {len(self.jobs)} runs{by}", headings, lines))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([headings, *lines])
        for name, content in (("sweep.md", markdown(headings, lines)), ("sweep.csv", text.getvalue())):
            with atomic_write(self.folder / name) as file:
                file.write(content.encode())
        if self.on_front:
            self._draw(varied)

    def _draw(self, varied: Sequence[str]) -> None:
        jobs = [job for job in self.jobs if {"judges", "kl"} <= job.validation.keys()]
        short = dict(zip(varied, _short(varied), strict=True))
        names = [" ".join(f"{short[key]}={_rounded(job.overrides.get(key, ''))}" for key in varied) for job in jobs]
        kl, judges = ([job.validation[name] for job in jobs] for name in ("kl", "judges"))
        trade_off(names, kl, judges, [job.folder in self.on_front for job in jobs], self.folder / "sweep.png")


def _varied(overrides: Sequence[dict[str, str]]) -> list[str]:
    """Keys that the jobs differ in."""
    keys = dict.fromkeys(key for some in overrides for key in some)
    return [key for key in keys if len({some.get(key) for some in overrides}) > 1]


def _short(keys: Sequence[str]) -> list[str]:
    """The last parts of keys, or all of those that would not be told apart."""
    last = [key.rpartition(".")[2] for key in keys]
    return [end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)]


def _rounded(value: str) -> str:
    """A number with four digits; anything else as it is."""
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value
