"""Several reward models as one that is cautious where they disagree."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from t2ifb.scorers.clip_encoder import CLIPEncoder
from t2ifb.scorers.clip_source import CLIPSource
from t2ifb.scorers.reward_files import read_export
from t2ifb.scorers.reward_model import RewardModel

SMALLEST = 1e-12
"""Added to the variance, as the square root has no gradient at zero, where all members agree."""


class Ensemble(nn.Module):
    """mean - k · standard deviation of the members' rewards (arXiv 2310.02743, uncertainty-weighted optimisation).

    Rewards of members are comparable because the Bradley-Terry loss fixes their unit: a difference of 1 is odds of e.
    Their offsets are free, and so each member may be given one, such as its mean on the base model's samples: without
    it the members seem to disagree where only their zeros do.

    Attributes:
        name: How tables call it.
        members: The reward models. Those on one encoder share it, and each image passes it once.
        k: Weight of the disagreement.
    """

    name = "ensemble"

    def __init__(self, members: Sequence[RewardModel], k: float = 1.0, offsets: Sequence[float] | None = None) -> None:
        """Put members together.

        Args:
            members: At least one.
            k: At least 0; 0 is the plain mean.
            offsets: What is taken off each member's rewards; nothing by default.

        Raises:
            ValueError: There is no member, k is negative, or there are not as many offsets as members.
        """
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one reward model")
        if k < 0:
            raise ValueError(f"k must be at least 0, not {k}: it weighs the members' disagreement")
        if offsets is not None and len(offsets) != len(members):
            raise ValueError(f"expected {len(members)} offsets, one a member, got {len(offsets)}")
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
        """Load exported reward models; see `RewardModel.from_pretrained` for what a source is.

        Args:
            sources: Run folders, exports or hub ids.
            k: See the class.
            offsets: See the class.
            encoder: The encoder of all, when its weights are elsewhere than where the members were trained.

        Raises:
            ValueError: An export is missing, or is for another encoder than the one that was given.
        """
        members: list[RewardModel] = []
        for source in sources:
            encoders = [m.encoder for m in members if isinstance(m.encoder, CLIPEncoder)]
            built = [one for one in encoders if not one.source.trainable_layers]
            members.append(_load(source, built, encoder))
        return cls(members, k, offsets).eval()

    @classmethod
    def outline(
        cls,
        sources: Sequence[str | Path],
        k: float = 1.0,
        offsets: Sequence[float] | None = None,
        encoder: CLIPSource | None = None,
        *,
        untrained: Callable[[CLIPSource | None], RewardModel],
    ) -> Self:
        """The same without the encoders' weights, see `scorers.outline` and `RewardModel.outline`."""
        members: list[Any] = [RewardModel.outline(source, encoder, untrained=untrained) for source in sources]
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
        embedded = {key: (e.encode_images(images), e.encode_prompts(prompts)) for key, e in encoders.items()}
        rewards = torch.stack([member.head(*embedded[id(member.encoder)]).float() for member in members])
        return pessimistic(rewards - self.offsets[:, None], self.k)


def pessimistic(rewards: Tensor, k: float) -> Tensor:
    """Mean - k · standard deviation over members.

    Args:
        rewards: (M, B), of M members.
        k: Weight of the (population) standard deviation.

    Returns:
        (B,).
    """
    return rewards.mean(0) - k * (rewards.var(0, correction=0) + SMALLEST).sqrt()


def _load(source: str | Path, built: Sequence[CLIPEncoder], encoder: CLIPSource | CLIPEncoder | None) -> RewardModel:
    """A member on an encoder that is there already if it is the same, else on its own."""
    fingerprint = read_export(source).fingerprint
    shared = [one for one in built if one.source.fingerprint() == fingerprint]
    return RewardModel.from_pretrained(source, shared[0] if shared else encoder)
