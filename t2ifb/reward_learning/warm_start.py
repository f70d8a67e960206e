"""Reward training that starts from a published preference model or from an earlier reward run."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from t2ifb.scorers import hps_v2
from t2ifb.scorers.clip import CLIPEncoder, CLIPSource
from t2ifb.scorers.heads import BilinearHead
from t2ifb.scorers.image_reward import HUB_ID as IMAGE_REWARD
from t2ifb.scorers.pair_encoder import ImageRewardSource, published_head
from t2ifb.scorers.reward_model import RewardModel, Source, read_export
from t2ifb.scorers.weights import find_weights

logger = logging.getLogger(__name__)

HPS_SCALE = 100.0
"""Factor on cosines in the training of HPSv2, CLIP's largest."""


@dataclass(frozen=True)
class WarmStart:
    """What training starts from.

    Attributes:
        name: Name in tables.
        encoder: The encoder, with the settings of the run.
        head: Builds the head with the initial weights, from `embedding_dim`.
        tuned: Weights of tuned encoder layers.
    """

    name: str
    encoder: Source
    head: Callable[..., nn.Module]
    tuned: Mapping[str, Tensor] = field(default_factory=dict)

    def model(self) -> RewardModel:
        """The reward model before training."""
        encoder = replace(self.encoder, device="cpu").load()
        if isinstance(encoder, CLIPEncoder) and self.tuned:
            encoder.load_tuned(self.tuned)
        model = RewardModel(encoder, self.head(embedding_dim=encoder.embedding_dim))
        model.name = f"{self.name} before training"
        return model.eval().requires_grad_(False)


def warm_start(encoder: CLIPSource) -> WarmStart | None:
    """Resolve `encoder.init`.

    - `pick_score` and `hps_v2`, also as `pick_score:<folder>` and `hps_v2:<file>`: the encoder is the published
      fine-tuned CLIP, and the head a `BilinearHead` whose untrained score is the published one (PickScore exactly,
      HPSv2.1 times 100, for square images).
    - `image_reward`, also as `image_reward:<folder>`: the encoder is ImageReward's network, which reads image and
      prompt together, and the head a `StackHead` whose untrained score is the published one.
    - a reward run, its export or a hub id: its encoder and head.

    Args:
        encoder: Settings of the run; the model is replaced, `precision`, `device` and `trainable_layers` are kept.

    Returns:
        The start; None without `init`.

    Raises:
        ValueError: `init` is unknown, its weights are missing, or `trainable_layers` differs from the run's.
    """
    if encoder.init is None:
        return None
    kind, _, source = encoder.init.partition(":")
    kept: dict[str, Any] = {
        "precision": encoder.precision,
        "device": encoder.device,
        "trainable_layers": encoder.trainable_layers,
    }
    if kind == "pick_score":
        from t2ifb.scorers.conversion import pick_score_encoder
        from t2ifb.scorers.pick_score import HUB_ID as PICK_SCORE

        found, scale = pick_score_encoder(source or PICK_SCORE)
        start = WarmStart("PickScore", replace(found, **kept), _cosine_head(scale))
    elif kind == "hps_v2":
        path = find_weights(source or hps_v2.HUB_ID, hps_v2.FILE)
        found = CLIPSource(hps_v2.MODEL, str(path), quick_gelu=False)
        start = WarmStart("HPSv2.1", replace(found, **kept), _cosine_head(HPS_SCALE))
    elif kind == "image_reward":
        start = _of_image_reward(ImageRewardSource(source or IMAGE_REWARD, **kept))
    else:
        start = _of_run(encoder.init, kept)
    logger.warning("training starts from %s; its head replaces the chosen one", start.name)
    return start


def _of_image_reward(source: ImageRewardSource) -> WarmStart:
    """Start from ImageReward."""

    def head(embedding_dim: int) -> nn.Module:
        return published_head(source.score())

    return WarmStart("ImageReward", source, head)


def _of_run(source: str, kept: Mapping[str, Any]) -> WarmStart:
    """Start from a reward model."""
    export = read_export(source)
    if export.encoder.trainable_layers and export.encoder.trainable_layers != kept["trainable_layers"]:
        raise ValueError(
            f"{source} has tuned the last {export.encoder.trainable_layers} layers of its encoder; set "
            f"trainable_layers={export.encoder.trainable_layers} to continue from them"
        )
    name = Path(source).expanduser().absolute().name if Path(source).expanduser().exists() else source

    def head(embedding_dim: int) -> nn.Module:
        return export.build_head()

    return WarmStart(f"reward model {name}", replace(export.encoder, **kept), head, export.tuned())


def _cosine_head(scale: float) -> Callable[..., nn.Module]:
    """Builder of a head that starts as `scale` times the cosine."""

    def head(embedding_dim: int) -> nn.Module:
        return BilinearHead(embedding_dim, log_scale=math.log(scale))

    return head
