"""ImageReward: preference model trained on ImageRewardDB, BLIP with cross-attention (arXiv 2304.05977)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from t2ifb.scorers.blip import BLIP, VOCABULARY, BertPrompts, TextSettings
from t2ifb.scorers.heads import linear_stack
from t2ifb.scorers.weights import beside, check_names, find_weights, read_state
from t2ifb.utils.devices import computed_in, dtype_of

HUB_ID, FILES = "zai-org/ImageReward", ("ImageReward.pt", "image_reward.safetensors")
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Mean and standard deviation of the head's output on the authors' data, which standardise the published reward."""


class ImageReward(nn.Module):
    """BLIP's text tower with cross-attention to the image, and a reward head on its [CLS].

    Attributes:
        name: Name in tables.
    """

    name = "ImageReward"

    def __init__(self, blip: BLIP, head: nn.Module, prompts: BertPrompts) -> None:
        """Combine towers, head and tokenizer.

        Args:
            blip: The towers; the projections are not used.
            head: Maps (B, H) to (B, 1), in float32.
            prompts: Tokenizer with the vocabulary of the text tower.
        """
        super().__init__()
        self.blip, self.head, self.prompts = blip, head, prompts

    @classmethod
    def from_pretrained(
        cls, source: str | Path = HUB_ID, vocabulary: str | Path | None = None, precision: str = "fp32"
    ) -> Self:
        """Load ImageReward v1.0.

        Args:
            source: `ImageReward.pt`, a folder that contains it, or its hub id.
            vocabulary: Folder or hub id of BERT's vocabulary; by default the one beside the file, or else
                bert-base-uncased.
            precision: Precision of the towers: fp32, fp16 or bf16. The head and the reward are always float32.

        Raises:
            ValueError: The weights are missing or not those of ImageReward.
        """
        path = find_weights(source, *FILES)
        return cls.from_checkpoint(path, beside(path, "med_config.json"), vocabulary, precision)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        med_config: str | Path | None = None,
        vocabulary: str | Path | None = None,
        precision: str = "fp32",
    ) -> Self:
        """Read the original `ImageReward.pt`; see `from_pretrained`.

        Args:
            path: The file.
            med_config: The original BERT configuration; bert-base-uncased's by default.
            vocabulary: See `from_pretrained`.
            precision: See `from_pretrained`.

        Raises:
            ValueError: A tensor is missing or unknown, or the file is not a checkpoint.
        """
        path, dtype = Path(path), dtype_of(precision)
        state = read_state(path)
        layers = {name.removeprefix("mlp.layers."): t for name, t in state.items() if not name.startswith("blip.")}
        blip = BLIP.from_state(_towers(state), TextSettings.read(med_config), path)
        head = linear_stack(blip.text_proj.in_features)
        check_names(set(layers), set(head.state_dict()), path, "ImageReward")
        try:
            head.load_state_dict(layers)
        except RuntimeError as error:
            raise ValueError(f"{path}: the head does not match the towers: {error}") from error
        return cls(blip.to(dtype), head, BertPrompts.near(path, vocabulary, blip.text)).eval().requires_grad_(False)

    @classmethod
    def on_meta(
        cls, source: str | Path = HUB_ID, vocabulary: str | Path | None = None, precision: str = "fp32"
    ) -> Self:
        """Build the scorer without weights; see `scorers.meta`."""
        from t2ifb.scorers.meta import blank_tokens

        blip = BLIP.on_meta(source, FILES, _towers).to(dtype_of(precision))
        with torch.device("meta"):
            head = linear_stack(blip.text_proj.in_features)
        return cls(blip, head, BertPrompts(VOCABULARY, 0, blank_tokens))

    def score_tokens(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score preprocessed inputs.

        Args:
            pixel_values: (B, 3, 224, 224), normalised as for CLIP.
            input_ids: (B, L), [CLS] first.
            attention_mask: (B, L), 1 for tokens and 0 for padding.

        Returns:
            (B,) float32, approximately standard normal on the authors' data.
        """
        raw: Tensor = self.head(self.states(pixel_values, input_ids, attention_mask)).squeeze(-1)
        return (raw - MEAN) / STD

    def states(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """States (B, H) float32 of [CLS], which the head maps to the reward; arguments as in `score_tokens`."""

        def state(pixels: Tensor) -> Tensor:
            return self.blip.text_state(input_ids, attention_mask, self.blip.image_states(pixels))

        return computed_in(self.blip.vision_proj.weight.dtype, state, pixel_values)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score B images for B prompts.

        Args:
            images: (B, 3, H, W) in [0, 1].
            prompts: B strings; truncated to 35 tokens.

        Returns:
            (B,) float32, differentiable with respect to the images.
        """
        return self.score_tokens(self.blip.to_pixels(images), *self.prompts(prompts, images))

    def cut_prompts(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that are longer than 35 tokens."""
        return self.prompts.cut(prompts)


def _towers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("blip."): tensor for name, tensor in state.items() if name.startswith("blip.")}
