"""Scorers: how well an image fits a prompt.

Every scorer is an `nn.Module`: `scorer(images, prompts)` maps images (B, 3, H, W) in [0, 1] and B strings to (B,)
float32, differentiable with respect to the images unless another program computes it. Every class with such a `forward`
in one of these files can be imported from here, and from `t2ifb`.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2ifb.utils.discovery import classes_with

if TYPE_CHECKING:  # for type checkers only
    from t2ifb.scorers.aesthetic_score import AestheticScore as AestheticScore
    from t2ifb.scorers.blip_score import BLIPScore as BLIPScore
    from t2ifb.scorers.clip_score import CLIPScore as CLIPScore
    from t2ifb.scorers.command_score import CommandScore as CommandScore
    from t2ifb.scorers.ensemble import Ensemble as Ensemble
    from t2ifb.scorers.hps_v2 import HPSv2 as HPSv2
    from t2ifb.scorers.http_score import HTTPScore as HTTPScore
    from t2ifb.scorers.image_reward import ImageReward as ImageReward
    from t2ifb.scorers.mix import Mix as Mix
    from t2ifb.scorers.module_score import ModuleScore as ModuleScore
    from t2ifb.scorers.pick_score import PickScore as PickScore
    from t2ifb.scorers.reward_model import RewardModel as RewardModel


def scorer_classes() -> dict[str, str]:
    """Full module names of all scorers, by class name."""
    return classes_with(__name__, Path(__file__).parent, {"forward": ("images", "prompts")})


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:  # lazy, because the modules import torch and open_clip
        if not name.startswith("_") and (module := scorer_classes().get(name)):
            return getattr(import_module(module), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *scorer_classes()})
