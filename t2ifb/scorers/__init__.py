"""Scorers: how well an image fits a prompt.

Every scorer is an `nn.Module`: `scorer(images, prompts)` takes images (B, 3, H, W) in [0, 1] and B strings and gives
(B,) float32, differentiable with respect to the images.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2ifb.scorers.clip_score import CLIPScore
    from t2ifb.scorers.reward_model import RewardModel

__all__ = ["CLIPScore", "RewardModel"]


def __getattr__(name: str) -> Any:  # the modules behind the names import torch and open_clip
    if name == "CLIPScore":
        from t2ifb.scorers.clip_score import CLIPScore

        return CLIPScore
    if name == "RewardModel":
        from t2ifb.scorers.reward_model import RewardModel

        return RewardModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
