"""Small real scorers, and one that must not be built."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Brightness(nn.Module):
    """How bright an image is, times the number in a file of weights."""

    name = "Brightness"

    def __init__(self, weights: str | Path, shift: float = 0.0) -> None:
        super().__init__()
        self.factor = json.loads(Path(weights).read_text())["factor"]
        self.shift = shift

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return images.mean((1, 2, 3)) * self.factor + self.shift


class Scripted(nn.Module):
    """Brightness that counts its batches, all objects together, and fails at one when a test says so."""

    batches = 0
    killed_at: int | None = None
    nan_at: int | None = None

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        Scripted.batches += 1
        if Scripted.batches == self.killed_at:
            raise KeyboardInterrupt
        scores = images.mean((1, 2, 3))
        if Scripted.batches == self.nan_at:
            scores[-1] = torch.nan
        return scores


class Both(nn.Module):
    """The sum of two scorers."""

    def __init__(self, scorers: list[nn.Module]) -> None:
        super().__init__()
        self.scorers = nn.ModuleList(scorers)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        return torch.stack([scorer(images, prompts) for scorer in self.scorers]).sum(0)


def weights(path: Path, factor: float = 1.0) -> Path:
    """A file of weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"factor": factor}))
    return path


def refuses(*_: Any, **__: Any) -> nn.Module:
    """What stands for a class that must not be built."""
    raise AssertionError("this was built")
