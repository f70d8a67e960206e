"""Ensemble of reward models with a penalty for disagreement."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from t2ifb.data.embeddings import embed
from t2ifb.scorers.clip import CLIPEncoder, CLIPSource
from t2ifb.scorers.pair_encoder import PairStates
from t2ifb.scorers.reward_model import BuiltEncoder, RewardModel, read_export

SMALLEST = 1e-12
"""Added to the variance, because the square root has no gradient at zero (all members equal)."""


class Ensemble(nn.Module):
    """Mean - k · standard deviation of the members' rewards (arXiv 2310.02743, uncertainty-weighted optimisation).

    Rewards of members are comparable because the Bradley-Terry loss fixes their unit: a difference of 1 means odds of
    e. Their offsets are arbitrary, so each member may be given one, such as its mean on the base model's samples.
    Without offsets, different zero points count as disagreement.

    Attributes:
        name: Name in tables.
        members: The reward models. Members with the same encoder share it, and it embeds each image once.
        k: Weight of the disagreement.
    """

    name = "ensemble"

    def __init__(self, members: Sequence[RewardModel], k: float = 1.0, offsets: Sequence[float] | None = None) -> None:
        """Combine the members.

        Args:
            members: At least one.
            k: At least 0; 0 is the plain mean.
            offsets: Value subtracted from each member's rewards; 0 by default.

        Raises:
            ValueError: No member is given, k is negative, or the numbers of offsets and members differ.
        """
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one reward model")
        if k < 0:
            raise ValueError(f"k, the weight of the members' disagreement, must be at least 0, not {k}")
        if offsets is not None and len(offsets) != len(members):
            raise ValueError(f"expected {len(members)} offsets, one per member, got {len(offsets)}")
        self.members = nn.ModuleList(members)
        self.k = k
        self.offsets: Tensor
        self.register_buffer("offsets", torch.tensor(offsets or [0.0] * len(members)), persistent=False)

    @classmethod
    def from_pretrained(
        cls,
        sources: Sequence[str | Path],
        k: float = 1.0,
        offsets: Sequence[float] | None = None,
        encoder: CLIPSource | CLIPEncoder | None = None,
    ) -> Self:
        """Load exported reward models; see `RewardModel.from_pretrained` for the possible sources.

        Args:
            sources: Run folders, exports or hub ids.
            k: See the class.
            offsets: See the class.
            encoder: Encoder of all members, if its weights have moved since training.

        Raises:
            ValueError: An export is missing or belongs to another encoder.
        """
        members: list[RewardModel] = []
        for source in sources:
            encoders = [m.encoder for m in members if isinstance(m.encoder, (CLIPEncoder, PairStates))]
            built = [one for one in encoders if not one.source.trainable_layers]
            members.append(_load(source, built, encoder))
        return cls(members, k, offsets).eval()

    @classmethod
    def on_meta(
        cls,
        sources: Sequence[str | Path],
        k: float = 1.0,
        offsets: Sequence[float] | None = None,
        encoder: CLIPSource | None = None,
        *,
        untrained: Callable[[CLIPSource | None], RewardModel],
    ) -> Self:
        """Build the ensemble without encoder weights; see `scorers.meta` and `RewardModel.on_meta`."""
        members: list[Any] = [RewardModel.on_meta(source, encoder, untrained=untrained) for source in sources]
        shared = {member.encoder.source: member.encoder for member in members}
        for member in members:
            if not member.encoder.source.trainable_layers:
                member.encoder = shared[member.encoder.source]
        return cls(members, k, offsets)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score B images for B prompts.

        Args:
            images: (B, 3, H, W) in [0, 1].
            prompts: B strings.

        Returns:
            (B,) float32, differentiable with respect to the images.
        """
        members = cast(list[RewardModel], list(self.members))
        encoders = {id(member.encoder): member.encoder for member in members}
        embedded = {key: embed(encoder, images, prompts) for key, encoder in encoders.items()}
        rewards = torch.stack([member.head(*embedded[id(member.encoder)]).float() for member in members])
        return pessimistic(rewards - self.offsets[:, None], self.k)


def pessimistic(rewards: Tensor, k: float) -> Tensor:
    """Mean - k · standard deviation over members.

    Args:
        rewards: (M, B), rewards of M members.
        k: Weight of the (population) standard deviation.

    Returns:
        (B,).
    """
    return rewards.mean(0) - k * (rewards.var(0, correction=0) + SMALLEST).sqrt()


def _load(source: str | Path, built: Sequence[BuiltEncoder], encoder: CLIPSource | CLIPEncoder | None) -> RewardModel:
    """Load a member. It reuses a built encoder if that is the same."""
    fingerprint = read_export(source).fingerprint
    shared = [one for one in built if one.source.fingerprint() == fingerprint]
    return RewardModel.from_pretrained(source, shared[0] if shared else encoder)
