"""Weighted sum of scorers, each standardised on reference images."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

SMALLEST = 1e-6
"""Minimum standard deviation. A scorer below it does not distinguish the images and cannot be standardised."""


class Mix(nn.Module):
    """Σ w_k (r_k - m_k) / s_k over scorers r_k, with m = 0 and s = 1 until `standardise` sets them.

    Attributes:
        name: Name in tables.
        scorers: Scorers by name.
        weights: (K,), in the order of the scorers.
        means: (K,), m.
        deviations: (K,), s.
    """

    name = "mix"
    weights: Tensor
    means: Tensor
    deviations: Tensor

    def __init__(
        self, scorers: Mapping[str, Callable[[Tensor, list[str]], Tensor]], weights: Mapping[str, float] | None = None
    ) -> None:
        """Combine scorers.

        Args:
            scorers: At least one, by name; each maps images and prompts to scores.
            weights: Weights by name; 1 by default.

        Raises:
            ValueError: No scorer is given, or a weight names an unknown scorer.
        """
        super().__init__()
        if not scorers:
            raise ValueError("scorers={}: a mix needs at least one scorer")
        if unknown := sorted((weights or {}).keys() - scorers.keys()):
            raise ValueError(f"weights for {', '.join(unknown)}, but the scorers are {', '.join(scorers)}")
        self.scorers = nn.ModuleDict(scorers)  # type: ignore[arg-type]
        self.register_buffer("weights", torch.tensor([float((weights or {}).get(name, 1.0)) for name in scorers]))
        self.register_buffer("means", torch.zeros(len(scorers)))
        self.register_buffer("deviations", torch.ones(len(scorers)))

    @classmethod
    def on_meta(cls, scorers: Mapping[str, nn.Module], weights: Mapping[str, float] | None = None) -> "Mix":
        """Build a mix of scorers without weights; see `scorers.meta`."""
        return cls(scorers, weights)

    def parts(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """Raw scores of each scorer, (B,) float32."""
        return {name: scorer(images, prompts) for name, scorer in self.scorers.items()}

    def standardise(self, scores: Mapping[str, Tensor]) -> None:
        """Set mean and standard deviation of each scorer from its scores (N,) on reference images.

        Raises:
            ValueError: A scorer is missing, or its scores are constant or not finite.
        """
        for number, name in enumerate(self.scorers):
            values = scores[name][scores[name].isfinite()].double()
            deviation = float(values.std())
            if not deviation > SMALLEST:
                raise ValueError(f"{name} gives all reference images nearly the same score (deviation {deviation})")
            self.means[number], self.deviations[number] = float(values.mean()), deviation

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score B images for B prompts.

        Args:
            images: (B, 3, H, W) in [0, 1].
            prompts: B strings.

        Returns:
            (B,) float32, differentiable with respect to the images if the scorers are.
        """
        scores = torch.stack([score.float() for score in self.parts(images, prompts).values()])
        return self.combine(scores)

    def combine(self, scores: Tensor) -> Tensor:
        """The weighted sum (B,) of scores (K, B)."""
        return (self.weights[:, None] * (scores - self.means[:, None]) / self.deviations[:, None]).sum(0)
