"""Several scorers applied to the same images, and the table of their scores."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from t2ifb.utils.files import write_text

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
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)  # a prompt may be "NA"
        prompts = frame.pop(PROMPT).tolist()
        return cls(prompts, {str(name): column.to_numpy(np.float64) for name, column in frame.items()})

    def write(self, path: Path) -> None:
        """Write a CSV file atomically."""
        frame = pd.DataFrame({PROMPT: self.prompts, **self.columns})
        write_text(path, frame.to_csv(index=False, na_rep="nan", quoting=csv.QUOTE_NONNUMERIC))

    @property
    def by_prompt(self) -> dict[str, NDArray[np.float64]]:
        """Means (P,) over the images of each prompt, in the order of first appearance."""
        place = {prompt: number for number, prompt in enumerate(dict.fromkeys(self.prompts))}
        of_image = [place[prompt] for prompt in self.prompts]
        return {name: np.bincount(of_image, column) / np.bincount(of_image) for name, column in self.columns.items()}


BATCH = 64
GROUND_TRUTH = ("gold", "alignment", "fidelity", "strict")
"""The ground truth of `shapes` and its parts, by which nothing is chosen."""


class ScorerSet(nn.Module):
    """Several scorers and an optional ground-truth scorer with components.

    Attributes:
        scorers: Scorers by name.
        truth: Ground-truth scorer (`shapes`), used neither for training nor for selection.
    """

    def __init__(
        self,
        scorers: Mapping[str, Callable[[Tensor, list[str]], Tensor]],
        truth: nn.Module | None = None,
    ) -> None:
        """Combine the scorers."""
        super().__init__()
        self.scorers = nn.ModuleDict(scorers)  # type: ignore[arg-type]
        self.truth = truth
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor, prompts: Sequence[str], device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Scores (N,), float32 on the CPU, by name; ground truth as `gold` and `gold/<part>`.

        Args:
            images: (N, 3, H, W) uint8.
            prompts: N strings.
            device: Device of the scorers.
        """
        found: dict[str, list[Tensor]] = {}
        for start in range(0, len(images), BATCH):
            pixels = images[start : start + BATCH].to(device).float() / 255
            texts = list(prompts[start : start + BATCH])
            scores = {name: scorer(pixels, texts) for name, scorer in self.scorers.items()}
            if self.truth is not None:
                parts = self.truth.parts(pixels, texts)  # type: ignore[operator]
                scores |= {"gold" if part == "gold" else f"gold/{part}": parts[part] for part in GROUND_TRUTH}
            for name, score in scores.items():
                found.setdefault(name, []).append(score.float().cpu())
        return {name: torch.cat(parts) for name, parts in found.items()}
