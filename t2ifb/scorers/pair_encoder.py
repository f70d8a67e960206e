"""ImageReward's network as the encoder of a reward model: it reads an image and its prompt together."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from t2ifb.scorers.heads import StackHead
from t2ifb.scorers.image_reward import FILES, HUB_ID, MEAN, STD, ImageReward
from t2ifb.scorers.preprocess import VERSION
from t2ifb.scorers.weights import beside, find_weights
from t2ifb.utils.devices import device_of
from t2ifb.utils.files import sha256_file

KIND = "image_reward"
"""Name of this encoder in an export."""


@dataclass(frozen=True)
class ImageRewardSource:
    """Description of ImageReward's network, before it is built; the counterpart of `CLIPSource`.

    Attributes:
        model: `ImageReward.pt`, a folder that contains it, or its hub id.
        precision: Precision of the weights. States are always float32.
        device: Device for `load`; `auto` is the GPU if one exists.
        trainable_layers: 0: the network is always frozen.
        reads_together: See `PairEncoder`.
    """

    model: str = HUB_ID
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    device: str = "auto"
    trainable_layers: int = 0
    pretrained: None = None
    reads_together: Literal[True] = True

    def __post_init__(self) -> None:
        if self.trainable_layers:
            raise ValueError(f"trainable_layers={self.trainable_layers}: ImageReward's layers cannot be tuned; give 0")

    @property
    def folder(self) -> Path | None:
        """The file or folder; None for a hub id."""
        path = Path(self.model).expanduser()
        return path if path.exists() else None

    def fingerprint(self) -> str:
        """Everything that the states depend on, as JSON: file contents, not paths. No model is built.

        Raises:
            ValueError: The weights are missing.
        """
        path = find_weights(self.model, *FILES)
        more = [file for name in ("med_config.json", "vocab.txt", "tokenizer.json") if (file := beside(path, name))]
        files = {Path(file).name: sha256_file(file) for file in (path, *more)}
        return json.dumps({KIND: files, "precision": self.precision, "preprocess": VERSION}, sort_keys=True)

    def score(self) -> ImageReward:
        """ImageReward itself, on the CPU."""
        return ImageReward.from_pretrained(self.model, precision=self.precision)

    def load(self) -> "PairStates":
        """Build the encoder."""
        return PairStates(self, self.score()).to(device_of(self.device))

    def on_meta(self) -> "PairStates":
        """Build the encoder without weights; see `scorers.meta`."""
        return PairStates(self, ImageReward.on_meta(self.model, precision=self.precision))

    def to_dict(self) -> dict[str, Any]:
        """Plain values to rebuild the source, without the device."""
        return {"kind": KIND, "model": self.model, "precision": self.precision, "trainable_layers": 0}


class PairStates(nn.Module):
    """State of the [CLS] token of ImageReward's text tower, with attention to the image: a `PairEncoder`.

    Attributes:
        source: Source of the network.
        image_size: Side of the input, in pixels. Images of any size are accepted.
        embedding_dim: Width H of a state.
    """

    def __init__(self, source: ImageRewardSource, score: ImageReward) -> None:
        """Wrap ImageReward; its head is not used."""
        super().__init__()
        self.source, self.score = source, score
        self.image_size: int = score.blip.image_size
        self.embedding_dim: int = score.blip.text_proj.in_features

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    def encode_pairs(self, images: Tensor, prompts: list[str]) -> Tensor:
        """States (B, H) float32 of images (B, 3, H, W) in [0, 1] with B prompts, differentiable in the images."""
        return self.score.states(self.score.blip.to_pixels(images), *self.score.prompts(prompts, images))


def published_head(score: ImageReward) -> StackHead:
    """A head whose untrained reward is ImageReward's score: its own head, standardised."""
    head = StackHead(score.blip.text_proj.in_features)
    head.layers.load_state_dict(score.head.state_dict())
    last = head.layers[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.div_(STD)
        last.bias.sub_(MEAN).div_(STD)
    return head
