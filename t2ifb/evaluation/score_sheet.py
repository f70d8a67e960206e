"""Table of scores: one row per image, one column per scorer."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from t2ifb.data.files import atomic_write

PROMPT = "prompt"


@dataclass(frozen=True)
class ScoreSheet:
    """Scores of N images.

    Attributes:
        prompts: N prompts, one per image.
        columns: Scores (N,) by scorer, and the KL divergence as `kl` and `kl_without_last_two`; NaN if missing.
    """

    prompts: Sequence[str]
    columns: Mapping[str, NDArray[np.float64]]

    @classmethod
    def read(cls, path: Path) -> "ScoreSheet":
        """Read a file written by `write`."""
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        names = [name for name in (rows[0] if rows else {}) if name != PROMPT]
        columns = {name: np.array([float(row[name]) for row in rows]) for name in names}
        return cls([row[PROMPT] for row in rows], columns)

    def write(self, path: Path) -> None:
        """Write a CSV file atomically."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow([PROMPT, *self.columns])
        writer.writerows(zip(self.prompts, *(column.tolist() for column in self.columns.values()), strict=True))
        with atomic_write(path) as file:
            file.write(text.getvalue().encode())

    @property
    def by_prompt(self) -> dict[str, NDArray[np.float64]]:
        """Means (P,) over the images of each prompt, in the order of first appearance."""
        place = {prompt: number for number, prompt in enumerate(dict.fromkeys(self.prompts))}
        of_image = [place[prompt] for prompt in self.prompts]
        return {name: np.bincount(of_image, column) / np.bincount(of_image) for name, column in self.columns.items()}
