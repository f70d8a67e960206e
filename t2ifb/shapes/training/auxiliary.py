"""Auxiliary loss of both CLIP towers: reading content, positions and damage from an embedding.

A contrastive loss alone learns slowly that captions describe objects, their number and their positions. A linear map
that reads these from an embedding provides a direct signal. It is discarded after training.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from t2ifb.shapes.grammar import BACKGROUNDS, COLORS, HELD_OUT, SHAPES, Scene
from t2ifb.shapes.renderer import SIZE, Placed
from t2ifb.shapes.training.distortions import ASPECTS

COMBINATIONS = [(color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in HELD_OUT]
MOST = 3
"""Maximum number of objects of one kind in a picture."""
THERE_WEIGHT = 5.0
"""Loss weight of the few present kinds against the many absent ones."""


@dataclass(frozen=True)
class SceneFacts:
    """Content of N scenes.

    Attributes:
        at_least: (N, K, 3), 1 for at least one, two, three objects of a kind.
        place: (N, K, 2), mean position of the objects of a kind, x and y in [-1, 1].
        background: (N,) int64, in the order of `BACKGROUNDS`.
    """

    at_least: Tensor
    place: Tensor
    background: Tensor

    @classmethod
    def of(cls, scenes: list[Scene], layouts: list[list[Placed]]) -> Self:
        """Count and locate the objects of scenes."""
        count = torch.zeros(len(scenes), len(COMBINATIONS))
        place = torch.zeros(len(scenes), len(COMBINATIONS), 2)
        for number, layout in enumerate(layouts):
            for item in layout:
                kind = COMBINATIONS.index((item.thing.color, item.thing.shape))
                count[number, kind] += 1
                place[number, kind] += torch.tensor([item.x, item.y]) / (SIZE / 2) - 1
        at_least = (count[..., None] >= torch.arange(1, MOST + 1)).float()
        backgrounds = list(BACKGROUNDS)
        background = torch.tensor([backgrounds.index(scene.background) for scene in scenes])
        return cls(at_least, place / count.clamp(min=1)[..., None], background)


class SceneReader(nn.Module):
    """Linear map from an embedding to the facts of a scene, shared by images and texts."""

    def __init__(self, embedding_dim: int) -> None:
        """Build the map for embeddings of width `embedding_dim`."""
        super().__init__()
        kinds = len(COMBINATIONS)
        self.widths = [kinds * MOST, len(BACKGROUNDS), kinds * 2, len(ASPECTS)]
        self.scale = embedding_dim**0.5
        self.linear = nn.Linear(embedding_dim, sum(self.widths))

    def forward(self, embeddings: Tensor, facts: SceneFacts, rows: Tensor, severity: Tensor | None = None) -> Tensor:
        """Loss of the predicted facts.

        Args:
            embeddings: (B, D), L2-normalised.
            facts: Facts of all scenes.
            rows: (B,), scene index of each embedding.
            severity: (B, 5), damage of the images. Without it (texts) neither damage nor positions are part of the
                loss.

        Returns:
            Scalar.
        """
        kinds, background, place, damage = self.linear(embeddings * self.scale).split(self.widths, 1)
        at_least = facts.at_least[rows]
        weight = 1 + (THERE_WEIGHT - 1) * at_least
        loss = F.binary_cross_entropy_with_logits(kinds.view_as(at_least), at_least, weight, reduction="sum")
        loss = 0.1 * loss / len(rows) + F.cross_entropy(background, facts.background[rows])
        if severity is None:
            return loss
        there = at_least[..., 0]
        off = ((place.view(*there.shape, 2) - facts.place[rows]) ** 2).sum(-1)
        return loss + 5 * F.mse_loss(damage, severity) * len(ASPECTS) + 2 * (off * there).sum(1).mean()
