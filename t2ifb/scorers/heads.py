"""Reward heads: functions from a pair of embeddings to one number.

A head is an `nn.Module` that maps image embeddings (B, D) and prompt embeddings (B, D) to (B,). It takes
`embedding_dim` and its own arguments, and stores in `arguments` the plain values to rebuild it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class MLPHead(nn.Module):
    """The report's head: a five-layer MLP on `[image; text]` (PAPER, stage 1, figure 5).

    ReLU between layers, linear output. Dropout on the input and after the activations of the first hidden layers.
    """

    def __init__(
        self,
        embedding_dim: int,
        hidden: Sequence[int] = (1024, 256, 128, 32),
        dropout: Sequence[float] = (0.2, 0.2, 0.1),
    ) -> None:
        """Build the layers.

        Args:
            embedding_dim: Width D of image and prompt embeddings. The input has width 2 D.
            hidden: Widths of the hidden layers.
            dropout: Probabilities on the input, after the first hidden layer, after the second, and so on. There may be
                fewer probabilities than layers.

        Raises:
            ValueError: A width is not positive, a probability is not in [0, 1), or too many probabilities are given.
        """
        super().__init__()
        if embedding_dim < 1 or any(width < 1 for width in hidden):
            raise ValueError(f"widths must be positive, got embedding_dim={embedding_dim}, hidden={list(hidden)}")
        if len(dropout) > len(hidden) + 1 or not all(0 <= probability < 1 for probability in dropout):
            raise ValueError(
                f"dropout must be at most {len(hidden) + 1} probabilities in [0, 1) (input, then each hidden layer), "
                f"got {list(dropout)}"
            )
        self.arguments: dict[str, Any] = {
            "embedding_dim": int(embedding_dim),
            "hidden": [int(width) for width in hidden],
            "dropout": [float(probability) for probability in dropout],
        }
        widths = [2 * embedding_dim, *hidden]
        chances = [*dropout, *[0.0] * (len(widths) - len(dropout))]
        layers: list[nn.Module] = [nn.Dropout(chances[0])] if chances[0] else []
        for narrow, wide, chance in zip(widths[1:], widths[:-1], chances[1:], strict=True):
            layers += [nn.Linear(wide, narrow), nn.ReLU()]
            layers += [nn.Dropout(chance)] if chance else []
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, image_embeddings: Tensor, prompt_embeddings: Tensor) -> Tensor:
        """Rewards of B pairs.

        Args:
            image_embeddings: (B, D), L2-normalised.
            prompt_embeddings: (B, D), L2-normalised.

        Returns:
            (B,), unbounded. Only differences for the same prompt are meaningful.
        """
        rewards: Tensor = self.layers(torch.cat([image_embeddings, prompt_embeddings], dim=1))
        return rewards.squeeze(1)
