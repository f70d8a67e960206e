"""Several scorers applied to the same images."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

BATCH = 64


class Judges(nn.Module):
    """Several scorers and an optional ground-truth scorer with components.

    Attributes:
        scorers: Scorers by name.
        truth: Ground-truth scorer (`shapes`), used neither for training nor for selection.
        truth_parts: The reported components of `truth.parts(images, prompts)`.
    """

    def __init__(
        self,
        scorers: Mapping[str, Callable[[Tensor, list[str]], Tensor]],
        truth: nn.Module | None = None,
        truth_parts: Sequence[str] = ("gold", "alignment", "fidelity", "strict"),
    ) -> None:
        """Combine the scorers."""
        super().__init__()
        self.scorers = nn.ModuleDict(scorers)  # type: ignore[arg-type]
        self.truth = truth
        self.truth_parts = tuple(truth_parts)
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
                scores |= {"gold" if part == "gold" else f"gold/{part}": parts[part] for part in self.truth_parts}
            for name, score in scores.items():
                found.setdefault(name, []).append(score.float().cpu())
        return {name: torch.cat(parts) for name, parts in found.items()}
