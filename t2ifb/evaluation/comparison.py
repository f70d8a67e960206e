"""Paired comparison of two models' scores on the same prompts and noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from t2ifb.evaluation.statistics import Interval, bootstrap_interval, paired_difference
from t2ifb.evaluation.tables import write_results

HEADINGS = ("scorer", "base", "tuned", "difference", "wins %")


@dataclass(frozen=True)
class Gain:
    """Scores of one scorer for a base model and a tuned one.

    Attributes:
        name: Name of the scorer.
        base: Base model's mean over prompts.
        tuned: Tuned model's mean over prompts.
        difference: Paired difference of the means, with its interval over prompts.
        win_rate: Share of images whose tuned version has the higher score, ties count half.
        trained_on: Whether the model was tuned on this scorer, which is then not a judge.
    """

    name: str
    base: float
    tuned: float
    difference: Interval
    win_rate: Interval
    trained_on: bool = False

    def cells(self) -> list[str]:
        """Table cells in the order of `HEADINGS`."""
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
    """Compare scores (N,) of the same N samples. Samples of a prompt must be consecutive.

    Prompts with a NaN score of any of their samples in either model are skipped.
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
    """Write `<stem>.md`, `.tex`, `.json` and `.csv`, each atomically."""
    write_results(rows, HEADINGS, [row.cells() for row in rows], folder, stem)
