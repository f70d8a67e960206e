"""Reward heads: functions from a pair of embeddings to one number.

A head is an `nn.Module` that maps image embeddings (B, D) and prompt embeddings (B, D) to (B,). It takes
`embedding_dim` and its own arguments, and stores in `arguments` the plain values to rebuild it.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def linear_stack(width: int) -> nn.Sequential:
    """D → 1024 → 128 → 64 → 16 → 1, with dropout after the first three layers and no activations.

    The linear layers have the indices 0, 2, 4, 6, 7, as in the published checkpoints. Without activations they compose
    to one affine map, but the files store them separately.

    Args:
        width: Input width D.
    """
    return nn.Sequential(
        nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64),
        nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
    )  # fmt: skip


class StackHead(nn.Module):
    """ImageReward's head (arXiv 2304.05977): `linear_stack` on one state of image and prompt together."""

    def __init__(self, embedding_dim: int) -> None:
        """Build the layers.

        Args:
            embedding_dim: Width of a state.
        """
        super().__init__()
        self.arguments: dict[str, Any] = {"embedding_dim": int(embedding_dim)}
        self.layers = linear_stack(embedding_dim)

    def forward(self, states: Tensor, prompt_embeddings: Tensor) -> Tensor:
        """Rewards (B,) of states (B, D); the prompts are part of the states."""
        rewards: Tensor = self.layers(states)
        return rewards.squeeze(1)


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
