"""Linear reward head."""

from typing import Any

import torch
from torch import Tensor, nn


class LinearHead(nn.Module):
    """r = w · [image; text].

    For two images of one prompt the text term cancels, so this head ranks images independently of the prompt. Its
    accuracy is what can be reached without the prompt.
    """

    def __init__(self, embedding_dim: int) -> None:
        """Build the layer.

        Args:
            embedding_dim: Embedding width D.
        """
        super().__init__()
        self.arguments: dict[str, Any] = {"embedding_dim": int(embedding_dim)}
        self.layer = nn.Linear(2 * embedding_dim, 1)

    def forward(self, image_embeddings: Tensor, prompt_embeddings: Tensor) -> Tensor:
        """Rewards (B,) of B pairs of L2-normalised embeddings (B, D)."""
        rewards: Tensor = self.layer(torch.cat([image_embeddings, prompt_embeddings], dim=1))
        return rewards.squeeze(1)
