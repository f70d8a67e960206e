"""Reward head that starts as CLIP Score and learns a correction."""

import math
from typing import Any

import torch
from torch import Tensor, nn


class BilinearHead(nn.Module):
    """r = e^τ (image · text + (A image) · (B text) + w · image).

    A and B are rank × D. B and w start at zero, so the untrained head ranks images as CLIP Score does. Training adds a
    low-rank correction to the comparison, as LoRA does to a layer (arXiv 2106.09685), and a term w for image quality
    that is independent of the prompt.
    """

    def __init__(self, embedding_dim: int, rank: int = 64, dropout: float = 0.1, log_scale: float = 2.3) -> None:
        """Build the layers.

        Args:
            embedding_dim: Embedding width D.
            rank: Rank of A and B.
            dropout: Dropout probability on both embeddings, in the learned terms only.
            log_scale: Initial τ; with 2.3 a cosine difference of 0.1 gives a log-odds of 1.

        Raises:
            ValueError: A size is not positive, or the probability is not in [0, 1).
        """
        super().__init__()
        if embedding_dim < 1 or rank < 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"expected positive sizes and dropout in [0, 1), got embedding_dim={embedding_dim}, rank={rank}, "
                f"dropout={dropout}"
            )
        self.arguments: dict[str, Any] = {
            "embedding_dim": int(embedding_dim),
            "rank": int(rank),
            "dropout": float(dropout),
            "log_scale": float(log_scale),
        }
        self.log_scale = nn.Parameter(torch.tensor(float(log_scale)))
        self.image_map = nn.Linear(embedding_dim, rank, bias=False)
        self.text_map = nn.Linear(embedding_dim, rank, bias=False)
        self.taste = nn.Linear(embedding_dim, 1, bias=False)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.image_map.weight, std=1 / math.sqrt(rank))
        nn.init.zeros_(self.text_map.weight)
        nn.init.zeros_(self.taste.weight)

    def forward(self, image_embeddings: Tensor, prompt_embeddings: Tensor) -> Tensor:
        """Rewards (B,) of B pairs of L2-normalised embeddings (B, D)."""
        image, text = self.dropout(image_embeddings), self.dropout(prompt_embeddings)
        learned = (self.image_map(image) * self.text_map(text)).sum(1)
        cosine = (image_embeddings * prompt_embeddings).sum(1)
        rewards: Tensor = self.log_scale.exp() * (cosine + learned + self.taste(image).squeeze(1))
        return rewards
