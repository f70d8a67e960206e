"""What both towers of the world's CLIP are asked besides matching each other: what is where, and how damaged it is.

A contrastive loss alone takes long to find out that captions are about things, their number and their places. A linear
map that reads these from an embedding says so directly; it is thrown away after training.
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
"""Things of one kind in one picture."""
THERE_WEIGHT = 5.0
"""Of the few kinds that are there, against the many that are not."""


@dataclass(frozen=True)
class SceneFacts:
    """What N scenes show.

    Attributes:
        at_least: (N, K, 3), 1 where there are at least one, two, three things of a kind.
        place: (N, K, 2), the mean place of the things of a kind, x and y in [-1, 1].
        background: (N,) int64, in the order of `BACKGROUNDS`.
    """

    at_least: Tensor
    place: Tensor
    background: Tensor

    @classmethod
    def of(cls, scenes: list[Scene], layouts: list[list[Placed]]) -> Self:
        """Count and locate the things of scenes."""
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
    """Reads the facts of a scene from an embedding by one linear map, the same for images and texts."""

    def __init__(self, embedding_dim: int) -> None:
        """Take embeddings of `embedding_dim` numbers."""
        super().__init__()
        kinds = len(COMBINATIONS)
        self.widths = [kinds * MOST, len(BACKGROUNDS), kinds * 2, len(ASPECTS)]
        self.scale = embedding_dim**0.5
        self.linear = nn.Linear(embedding_dim, sum(self.widths))

    def forward(self, embeddings: Tensor, facts: SceneFacts, rows: Tensor, severity: Tensor | None = None) -> Tensor:
        """How badly the facts are read.

        Args:
            embeddings: (B, D), L2-normalised.
            facts: Of all scenes.
            rows: (B,), each embedding's scene.
            severity: (B, 5), the damage of the images; without it neither damage nor places are asked, as a text
                knows of none.

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
