"""What tuning changed: two models' scores on the same prompts and noise."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from t2ifb.data.files import atomic_write
from t2ifb.evaluation.statistics import Interval, bootstrap_interval, paired_difference
from t2ifb.evaluation.table_text import latex, markdown, without_nan

HEADINGS = ("scorer", "base", "tuned", "difference", "wins %")


@dataclass(frozen=True)
class Gain:
    """One scorer on the images of a base model and of a tuned one.

    Attributes:
        name: Of the scorer.
        base: Mean over prompts.
        tuned: Mean over prompts.
        difference: Of the means, paired, with its interval over prompts.
        win_rate: Share of images whose tuned version has the higher score, equal ones counted half.
        trained_on: Whether the model was tuned by this scorer: then it is no judge.
    """

    name: str
    base: float
    tuned: float
    difference: Interval
    win_rate: Interval
    trained_on: bool = False

    def cells(self) -> list[str]:
        """In the order of `HEADINGS`."""
        mean, low, high = (getattr(self.difference, end) for end in ("mean", "low", "high"))
        return [
            self.name + (" (trained on)" if self.trained_on else ""),
            f"{self.base:.3f}",
            f"{self.tuned:.3f}",
            f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]",
            f"{100 * self.win_rate.mean:.0f}",
        ]


def gains(
    base: Mapping[str, ArrayLike],
    tuned: Mapping[str, ArrayLike],
    images_per_prompt: int = 1,
    trained_on: Sequence[str] = (),
    seed: int = 0,
) -> list[Gain]:
    """Compare scores (N,) of the same N samples, those of a prompt in a row.

    Samples that a scorer has no opinion on (NaN) in either model are left out.
    """

    def by_prompt(values: ArrayLike) -> NDArray[np.float64]:
        return np.asarray(values, np.float64).reshape(-1, images_per_prompt).mean(1)

    found = []
    for name in base:
        before, after = by_prompt(base[name]), by_prompt(tuned[name])
        kept = ~(np.isnan(before) | np.isnan(after))
        one, other = np.asarray(base[name], np.float64), np.asarray(tuned[name], np.float64)
        wins = by_prompt((other > one) + 0.5 * (other == one))
        found.append(
            Gain(
                name,
                float(before[kept].mean()) if kept.any() else np.nan,
                float(after[kept].mean()) if kept.any() else np.nan,
                paired_difference(after[kept], before[kept], seed=seed),
                bootstrap_interval(wins[kept], seed),
                name in trained_on,
            )
        )
    return found


def write_gains(rows: Sequence[Gain], folder: Path, stem: str) -> None:
    """Write `<stem>.md`, `.tex`, `.json` and `.csv`, each whole or not at all."""
    lines = [row.cells() for row in rows]
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    compared = [f"{name}{end}" for name in ("difference", "win_rate") for end in ("", "_low", "_high")]
    writer.writerow(["scorer", "base", "tuned", *compared, "trained_on"])
    for row in rows:
        ends = [value for each in (row.difference, row.win_rate) for value in (each.mean, each.low, each.high)]
        writer.writerow([row.name, row.base, row.tuned, *ends, row.trained_on])
    for suffix, text in (
        ("md", markdown(HEADINGS, lines)),
        ("tex", latex(HEADINGS, lines)),
        ("csv", buffer.getvalue()),
        ("json", json.dumps([without_nan(asdict(row)) for row in rows], indent=2, allow_nan=False)),
    ):
        with atomic_write(folder / f"{stem}.{suffix}") as file:
            file.write(text.encode())
