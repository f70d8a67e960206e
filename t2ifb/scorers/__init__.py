"""Scorers: how well an image fits a prompt.

Every scorer is an `nn.Module`: `scorer(images, prompts)` maps images (B, 3, H, W) in [0, 1] and B strings to (B,)
float32, differentiable with respect to the images.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2ifb.scorers.aesthetic_score import AestheticScore
    from t2ifb.scorers.blip_score import BLIPScore
    from t2ifb.scorers.clip_score import CLIPScore
    from t2ifb.scorers.ensemble import Ensemble
    from t2ifb.scorers.hps_v2 import HPSv2
    from t2ifb.scorers.image_reward import ImageReward
    from t2ifb.scorers.mix import Mix
    from t2ifb.scorers.pick_score import PickScore
    from t2ifb.scorers.reward_model import RewardModel

__all__ = [
    "AestheticScore",
    "BLIPScore",
    "CLIPScore",
    "Ensemble",
    "HPSv2",
    "ImageReward",
    "Mix",
    "PickScore",
    "RewardModel",
]
MODULES = {
    "AestheticScore": "aesthetic_score",
    "BLIPScore": "blip_score",
    "CLIPScore": "clip_score",
    "Ensemble": "ensemble",
    "HPSv2": "hps_v2",
    "ImageReward": "image_reward",
    "Mix": "mix",
    "PickScore": "pick_score",
    "RewardModel": "reward_model",
}


def __getattr__(name: str) -> Any:  # lazy, because the modules import torch and open_clip
    if name in MODULES:
        return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
