"""The end of a sweep: its runs sorted by the rule that chose their checkpoints, and the Pareto front."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray

from t2ifb.data.files import atomic_write
from t2ifb.evaluation.table_text import markdown, screen, show
from t2ifb.evaluation.tuning_figures import trade_off

FIGURES = ("judges", "kl", "kl_without_last_two", "reward", "gold", "accuracy", "loss")
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
        """Whether it has both a gain of the judges and a KL divergence."""
        return all(math.isfinite(self.validation.get(name, math.nan)) for name in ("judges", "kl"))

    @property
    def rank(self) -> float:
        """What jobs are sorted by; one without a finite figure comes last."""
        figure = self.validation.get(self.chosen_by, -math.inf)
        return figure if math.isfinite(figure) else -math.inf


def pareto_front(gains: NDArray[np.float64], costs: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) which points no other is at least as good as in both: a higher gain (N,) and a lower cost (N,)."""
    better = (gains[None] >= gains[:, None]) & (costs[None] <= costs[:, None])
    strictly = (gains[None] > gains[:, None]) | (costs[None] < costs[:, None])
    return np.asarray(~(better & strictly).any(1))


class SweepTable:
    """The jobs of a sweep, the best first.

    Attributes:
        jobs: Sorted.
        placed: Those with both a gain of the judges and a KL divergence.
        on_front: Folders of those on the Pareto front of judges against KL divergence, which the base model is a point
            of too: a run that is no better than it is not there.
    """

    def __init__(self, folder: Path, since: float = 0.0) -> None:
        """Read the run folders in a sweep's folder.

        Args:
            folder: The sweep's.
            since: Jobs that were last begun before this time, in seconds since the epoch, belong to other sweeps.
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
        """Show the table, and write it into the sweep's folder as Markdown, CSV and, for fine-tuning, a picture."""
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
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([headings, *exact])
        for name, content in (("sweep.md", markdown(headings, lines)), ("sweep.csv", text.getvalue())):
            with atomic_write(self.folder / name) as file:
                file.write(content.encode())
        if self.placed:
            self._draw(varied)

    def _draw(self, varied: Sequence[str]) -> None:
        jobs = self.placed
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
