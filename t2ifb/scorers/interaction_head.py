"""Reward head on the products and differences of the two embeddings."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class InteractionHead(nn.Module):
    """MLP on [image; text; image · text; |image - text|], with elementwise products and differences.

    The report's head must learn the comparison of image and prompt; here the comparison is an input. The embeddings are
    first scaled to unit mean square, since unit vectors have elements of about 1/√D.
    """

    def __init__(self, embedding_dim: int, hidden: Sequence[int] = (512, 128), dropout: float = 0.2) -> None:
        """Build the layers.

        Args:
            embedding_dim: Embedding width D.
            hidden: Widths of the hidden layers.
            dropout: Dropout probability on the input and after each hidden layer except the last.

        Raises:
            ValueError: A width is not positive, or the probability is not in [0, 1).
        """
        super().__init__()
        if embedding_dim < 1 or not hidden or any(width < 1 for width in hidden):
            raise ValueError(f"widths must be positive, got embedding_dim={embedding_dim}, hidden={list(hidden)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.arguments: dict[str, Any] = {
            "embedding_dim": int(embedding_dim),
            "hidden": [int(width) for width in hidden],
            "dropout": float(dropout),
        }
        layers: list[nn.Module] = []
        for wide, narrow in zip([4 * embedding_dim, *hidden], hidden, strict=False):
            layers += [nn.Dropout(dropout), nn.Linear(wide, narrow), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], 1))

    def forward(self, image_embeddings: Tensor, prompt_embeddings: Tensor) -> Tensor:
        """Rewards (B,) of B pairs of L2-normalised embeddings (B, D)."""
        scale = image_embeddings.shape[1] ** 0.5
        image, text = scale * image_embeddings, scale * prompt_embeddings
        rewards: Tensor = self.layers(torch.cat([image, text, image * text, (image - text).abs()], dim=1))
        return rewards.squeeze(1)
