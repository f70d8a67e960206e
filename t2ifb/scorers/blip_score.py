"""BLIP Score: cosine similarity of BLIP's image and prompt embeddings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from torch import Tensor, nn
from torch.nn.functional import normalize

from t2ifb.scorers.blip import BLIP, VOCABULARY, BertPrompts, TextSettings
from t2ifb.scorers.weights import beside, find_weights, read_state
from t2ifb.utils.devices import computed_in, dtype_of

ADDRESS = "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/model_large.pth"
FILES = ("model_large.pth", "blip.safetensors")
PRETRAINING = (
    "visual_encoder_m.", "text_encoder_m.", "vision_proj_m.", "text_proj_m.", "text_decoder.", "itm_head.",
    "image_queue", "text_queue", "queue_ptr", "ptr_queue", "temp",
)  # fmt: skip
"""Name prefixes of pre-training tensors outside the two towers."""


class BLIPScore(nn.Module):
    """Cosine of BLIP's projected [CLS] embeddings (arXiv 2201.12086), from -1 to 1, as in ImageReward's paper.

    Attributes:
        name: Name in tables.
    """

    name = "BLIP Score"

    def __init__(self, blip: BLIP, prompts: BertPrompts) -> None:
        """Combine BLIP's towers with the vocabulary of its text tower."""
        super().__init__()
        self.blip, self.prompts = blip, prompts

    @classmethod
    def from_pretrained(
        cls, source: str | Path = ADDRESS, vocabulary: str | Path | None = None, precision: str = "fp32"
    ) -> Self:
        """Load BLIP with the ViT-L image tower.

        Args:
            source: `model_large.pth`, a folder that contains it, or its URL.
            vocabulary: Folder or hub id of BERT's vocabulary; by default the one beside the file, or else
                bert-base-uncased.
            precision: Precision of the weights: fp32, fp16 or bf16. The score is always float32.

        Raises:
            ValueError: The weights are missing or not those of BLIP.
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
        """Read an original checkpoint; see `from_pretrained`.

        Args:
            path: `model_large.pth`. An `ImageReward.pt` is also accepted, but its towers were tuned without the
                projections of this score, so the result is not the published BLIP Score.
            med_config: The original BERT configuration; bert-base-uncased's by default.
            vocabulary: See `from_pretrained`.
            precision: See `from_pretrained`.

        Raises:
            ValueError: A tensor is missing or unknown, or the file is not a checkpoint.
        """
        path, dtype = Path(path), dtype_of(precision)
        blip = BLIP.from_state(_towers(read_state(path, within="model")), TextSettings.read(med_config), path)
        return cls(blip.to(dtype), BertPrompts.near(path, vocabulary, blip.text)).eval().requires_grad_(False)

    @classmethod
    def on_meta(
        cls, source: str | Path = ADDRESS, vocabulary: str | Path | None = None, precision: str = "fp32"
    ) -> Self:
        """Build the scorer without weights; see `scorers.meta`."""
        from t2ifb.scorers.meta import blank_tokens

        blip = BLIP.on_meta(source, FILES, _towers)
        return cls(blip.to(dtype_of(precision)), BertPrompts(VOCABULARY, 0, blank_tokens))

    def score_tokens(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score preprocessed inputs.

        Args:
            pixel_values: (B, 3, 224, 224), normalised as for CLIP.
            input_ids: (B, L), [CLS] first.
            attention_mask: (B, L), 1 for tokens and 0 for padding.

        Returns:
            (B,) float32 in [-1, 1].
        """
        dtype = self.blip.vision_proj.weight.dtype
        image = computed_in(dtype, lambda p: self.blip.vision_proj(self.blip.image_states(p)[:, 0]), pixel_values)
        text = self.blip.text_proj(self.blip.text_state(input_ids, attention_mask))
        return (normalize(image, dim=-1) * normalize(text.float(), dim=-1)).sum(-1)

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score B images for B prompts.

        Args:
            images: (B, 3, H, W) in [0, 1].
            prompts: B strings; truncated to 35 tokens.

        Returns:
            (B,) float32 in [-1, 1], differentiable with respect to the images.
        """
        return self.score_tokens(self.blip.to_pixels(images), *self.prompts(prompts, images))

    def cut_prompts(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that are longer than 35 tokens."""
        return self.prompts.cut(prompts)


def _towers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the towers by BLIP's names, from a BLIP or ImageReward file."""
    if any(name.startswith("blip.") for name in state):
        state = {name.removeprefix("blip."): t for name, t in state.items() if not name.startswith("mlp.")}
    return {name: tensor for name, tensor in state.items() if not name.startswith(PRETRAINING)}
