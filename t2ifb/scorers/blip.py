"""BLIP's image tower, text tower and tokenizer (arXiv 2201.12086), with the checkpoints' names and settings."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from t2ifb.scorers.preprocess import check_counts, preprocess
from t2ifb.scorers.weights import beside, check_names
from t2ifb.utils.files import read_text

MAX_TOKENS = 35
"""Maximum tokens per prompt, including [CLS] and [SEP]; longer prompts are truncated."""
VOCABULARY = "google-bert/bert-base-uncased"
"""Vocabulary of the prompts. The tokens [DEC] and [ENC] of the original never occur in scored prompts."""


class BertPrompts:
    """Turn prompts into token ids with a BERT vocabulary, read on first use."""

    def __init__(self, vocabulary: str | Path, ids: int, tokenizer: Any = None) -> None:
        """Store the settings.

        Args:
            vocabulary: A folder with `vocab.txt` or `tokenizer.json`, or a hub id.
            ids: Rows of the text tower's embedding table, including [DEC] and [ENC].
            tokenizer: Tokenizer to use instead of the vocabulary's.
        """
        self.vocabulary, self.ids = vocabulary, ids
        self._tokenizer = tokenizer

    @classmethod
    def near(cls, checkpoint: Path, vocabulary: str | Path | None, tower: Any) -> Self:
        """Use the given vocabulary, else the one beside the checkpoint, else bert-base-uncased."""
        if vocabulary is None and (beside(checkpoint, "vocab.txt") or beside(checkpoint, "tokenizer.json")):
            vocabulary = checkpoint.parent
        ids: int = tower.get_input_embeddings().num_embeddings
        return cls(VOCABULARY if vocabulary is None else vocabulary, ids)

    def __call__(self, prompts: list[str], images: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, (B, L) each, L at most `MAX_TOKENS`, on the images' device.

        Raises:
            ValueError: The vocabulary is missing or does not match, or the numbers of prompts and images differ.
        """
        check_counts(images, prompts)
        tokenize = self._tokens()
        batch = tokenize(prompts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        return batch["input_ids"].to(images.device), batch["attention_mask"].to(images.device)

    def cut(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that are longer than `MAX_TOKENS`."""
        lengths = map(len, self._tokens()(list(prompts), verbose=False)["input_ids"] if prompts else ())
        return [prompt for prompt, length in zip(prompts, lengths, strict=True) if length > MAX_TOKENS]

    def _tokens(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = self._load()
        return self._tokenizer

    def _load(self) -> Any:
        from transformers import BertTokenizer

        tokenizer: Any = None
        with suppress(OSError, ValueError):
            tokenizer = BertTokenizer.from_pretrained(str(self.vocabulary))
        # Without a vocabulary, transformers may return an empty one, in which every word is unknown.
        if tokenizer is not None and tokenizer.cls_token == "[CLS]" and self.ids - 2 <= len(tokenizer) <= self.ids:
            return tokenizer
        found = "" if tokenizer is None else f" (found {len(tokenizer)} tokens, the text tower has {self.ids})"
        raise ValueError(
            f"the vocabulary {self.vocabulary} is missing on this machine or does not match these weights{found}. "
            f"Download it: hf download {VOCABULARY} vocab.txt tokenizer.json tokenizer_config.json; then "
            "pass its folder as `vocabulary`."
        )


MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation for normalising pixels, as in CLIP."""
HEAD_WIDTH = 64
"""Width of an attention head, in both sizes of BLIP's image tower."""
NAMES = (
    ("visual_encoder.cls_token", "vision.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "vision.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj.", "vision.embeddings.patch_embedding."),
    ("visual_encoder.norm.", "vision.post_layernorm."),
    ("visual_encoder.blocks.{n}.norm1.", "vision.encoder.layers.{n}.layer_norm1."),
    ("visual_encoder.blocks.{n}.norm2.", "vision.encoder.layers.{n}.layer_norm2."),
    ("visual_encoder.blocks.{n}.attn.qkv.", "vision.encoder.layers.{n}.self_attn.qkv."),
    ("visual_encoder.blocks.{n}.attn.proj.", "vision.encoder.layers.{n}.self_attn.projection."),
    ("visual_encoder.blocks.{n}.mlp.", "vision.encoder.layers.{n}.mlp."),
    ("text_encoder.", "text."),
)
"""Name prefixes in the original checkpoints and in the `transformers` towers used here."""
PUBLISHED_VISION = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 16,
}  # fmt: skip
PUBLISHED_TEXT = {
    "vocab_size": 30524, "hidden_size": 768, "encoder_hidden_size": 1024, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 512, "bos_token_id": None,
    "sep_token_id": None,
}  # fmt: skip
"""Sizes of the published BLIP (ViT-L) and ImageReward; token ids used only for generation are omitted."""
DERIVED = "text_encoder.embeddings.position_ids"
"""Position buffer in files written by older versions of `transformers`."""


@dataclass(frozen=True)
class TextSettings:
    """Settings from an original `med_config.json` that tensor shapes do not determine.

    The defaults are those of bert-base-uncased. The BLIP defaults of `transformers` have 8 heads.

    Attributes:
        heads: Attention heads of the text tower.
        layer_norm_eps: Epsilon of the text tower's layer norms.
    """

    heads: int = 12
    layer_norm_eps: float = 1e-12

    @classmethod
    def read(cls, path: str | Path | None) -> Self:
        """Read a `med_config.json`; use the defaults without one.

        Raises:
            ValueError: The file is missing or has another format.
        """
        if path is None:
            return cls()
        try:
            content = json.loads(read_text(Path(path).expanduser()))
            return cls(int(content["num_attention_heads"]), float(content["layer_norm_eps"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a BERT configuration such as med_config.json: {error!r}") from error


class BLIP(nn.Module):
    """Both towers and their projections, without the parts that scoring does not need.

    Attributes:
        image_size: Side of the square input, in pixels.
        vision: Image tower with patches and a class token.
        text: BERT with cross-attention to the image, if one is given.
        vision_proj: Projection of the image's class token to the shared space.
        text_proj: Projection of the text's [CLS] to the shared space.
    """

    def __init__(self, vision: Mapping[str, Any], text: Mapping[str, Any], projected: int = 256) -> None:
        """Build the towers with random weights.

        Args:
            vision: Arguments of `transformers.BlipVisionConfig`.
            text: Arguments of `transformers.BlipTextConfig`.
            projected: Width of the shared space.
        """
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        super().__init__()
        self.image_size = int(vision["image_size"])
        self.vision = BlipVisionModel(BlipVisionConfig(**vision))
        self.text = BlipTextModel(BlipTextConfig(**text), add_pooling_layer=False)
        self.vision_proj = nn.Linear(int(vision["hidden_size"]), projected)
        self.text_proj = nn.Linear(int(text["hidden_size"]), projected)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], settings: TextSettings, path: Path) -> Self:
        """Build a frozen model in evaluation mode from the tensors of an original checkpoint.

        Args:
            state: Tensors by their original names, `visual_encoder.…`, `text_encoder.…`, `vision_proj.…`,
                `text_proj.…`; their shapes determine all sizes.
            settings: Settings that the shapes do not determine.
            path: Source of the tensors, for messages.

        Raises:
            ValueError: A tensor is missing, unknown or of another shape.
        """
        state = {name: tensor for name, tensor in state.items() if name != DERIVED}
        try:
            vision, text = _vision_arguments(state), _text_arguments(state, settings)
            with torch.device("meta"):  # skips random initialisation
                blip = cls(vision, text, len(state["vision_proj.weight"]))
        except (KeyError, ValueError, IndexError, TypeError, ZeroDivisionError) as error:
            raise ValueError(f"{path} is not a checkpoint of BLIP, its sizes are inconsistent: {error!r}") from error
        check_names(set(state), set(blip.original_state()), path, "BLIP")
        try:
            blip.load_state_dict({translate(n): tensor.float() for n, tensor in state.items()}, assign=True)
        except RuntimeError as error:
            raise ValueError(f"the tensors in {path} do not form a BLIP model: {error}") from error
        embeddings: Any = blip.text.embeddings
        embeddings.position_ids = torch.arange(text["max_position_embeddings"]).expand(1, -1)
        return blip.eval().requires_grad_(False)

    @classmethod
    def on_meta(
        cls, source: str | Path, names: Sequence[str], select: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    ) -> Self:
        """Build BLIP without weights, with the sizes of a local checkpoint, else the published ones.

        Args:
            source: The checkpoint or its folder. Anything else gives the published sizes.
            names: Possible file names in a folder.
            select: Selects the towers' tensors from a checkpoint.
        """
        from t2ifb.scorers.meta import shapes_in

        path = Path(source).expanduser()
        file = next((file for file in (path, *(path / name for name in names)) if file.is_file()), None)
        if file is not None:
            return cls.from_state(select(shapes_in(file)), TextSettings.read(beside(file, "med_config.json")), file)
        with torch.device("meta"):
            return cls(PUBLISHED_VISION, PUBLISHED_TEXT)

    def original_state(self) -> dict[str, Tensor]:
        """Tensors by their original names, as `from_state` reads them."""
        return {translate(name, to_original=True): tensor for name, tensor in self.state_dict().items()}

    def to_pixels(self, images: Tensor) -> Tensor:
        """Prepare images (B, 3, H, W) in [0, 1] for `image_states`."""
        return preprocess(images, self.image_size, MEAN, STD)

    def image_states(self, pixel_values: Tensor) -> Tensor:
        """Apply the image tower.

        Args:
            pixel_values: (B, 3, S, S), normalised.

        Returns:
            (B, 1 + patches, W), the class token first.
        """
        states: Tensor = self.vision(pixel_values=pixel_values).last_hidden_state
        return states

    def text_state(self, input_ids: Tensor, attention_mask: Tensor, image_states: Tensor | None = None) -> Tensor:
        """State of the text tower at [CLS].

        Args:
            input_ids: (B, L).
            attention_mask: (B, L), 1 for tokens and 0 for padding.
            image_states: (B, 1 + patches, W), for cross-attention; without it the text is encoded alone.

        Returns:
            (B, H).
        """
        mask = None if image_states is None else torch.ones(image_states.shape[:2], device=image_states.device)
        states: Tensor = self.text(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=image_states,
            encoder_attention_mask=mask,
            is_decoder=False,
        ).last_hidden_state
        return states[:, 0]


def translate(name: str, to_original: bool = False) -> str:
    """Translate a tensor name from the original to `transformers`, or back."""
    for pair in NAMES:
        before, after = reversed(pair) if to_original else pair
        if found := re.match(re.escape(before).replace(r"\{n\}", r"(\d+)"), name):
            return after.replace("{n}", found[1] if found.groups() else "") + name[found.end() :]
    return name


def _vision_arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes of the image tower. Its layer norms use the original epsilon, 1e-6."""
    width, _, patch, _ = state["visual_encoder.patch_embed.proj.weight"].shape
    patches = state["visual_encoder.pos_embed"].shape[1] - 1
    return {
        "hidden_size": width,
        "intermediate_size": len(state["visual_encoder.blocks.0.mlp.fc1.weight"]),
        "num_hidden_layers": _count(state, r"visual_encoder\.blocks\.(\d+)\."),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "image_size": round(patches**0.5) * patch,
        "patch_size": patch,
        "layer_norm_eps": 1e-6,
    }


def _text_arguments(state: Mapping[str, Tensor], settings: TextSettings) -> dict[str, Any]:
    vocabulary, width = state["text_encoder.embeddings.word_embeddings.weight"].shape
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "encoder_hidden_size": state["text_encoder.encoder.layer.0.crossattention.self.key.weight"].shape[1],
        "intermediate_size": len(state["text_encoder.encoder.layer.0.intermediate.dense.weight"]),
        "num_hidden_layers": _count(state, r"text_encoder\.encoder\.layer\.(\d+)\."),
        "num_attention_heads": settings.heads,
        "max_position_embeddings": len(state["text_encoder.embeddings.position_embeddings.weight"]),
        "layer_norm_eps": settings.layer_norm_eps,
        "bos_token_id": None,  # unused; transformers warns about ids beyond a small vocabulary
        "sep_token_id": None,
    }


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(found[1]) for name in state if (found := re.match(pattern, name)))
