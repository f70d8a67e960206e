"""Which questions to ask first: those on which an ensemble of rewards disagrees most."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from t2ifb.annotation.items import Item
from t2ifb.annotation.results import score_items


def disagreement(rewards: Tensor) -> float:
    """How much M rewards disagree on the order of k images.

    Args:
        rewards: (M, k). Only differences between the images of one reward have a meaning, so each row is centred.

    Returns:
        The standard deviation over the rewards, root mean square over the images; 0 if all agree.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    return float(centred.var(0, correction=0).mean().sqrt())


def by_disagreement(
    items: Sequence[Item], members: Sequence[Callable[[Tensor, list[str]], Tensor]], device: torch.device
) -> list[Item]:
    """Questions in the order of falling disagreement.

    Args:
        items: The questions.
        members: At least two rewards.
        device: Device of the rewards.

    Raises:
        ValueError: There are fewer than two rewards.
    """
    if len(members) < 2:
        raise ValueError(f"disagreement needs an ensemble of at least two rewards, got {len(members)}")
    scores = [score_items(member, items, device) for member in members]
    found = {item.key: disagreement(torch.tensor([score[item.key] for score in scores])) for item in items}
    return sorted(items, key=lambda item: -found[item.key])
