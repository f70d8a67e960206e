"""PickScore: CLIP ViT-H/14 tuned on the preferences of Pick-a-Pic (arXiv 2305.01569)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import normalize

from t2ifb.scorers.preprocess import check_counts, preprocess
from t2ifb.utils.devices import computed_in, dtype_of

HUB_ID, PROCESSOR = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"

PUBLISHED: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
        "image_size": 224, "patch_size": 14,
    },
    "text_config": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    },
    "projection_dim": 1024,
}  # fmt: skip
"""Sizes of the published model."""


class PickScore(nn.Module):
    """Cosine of a fine-tuned CLIP's embeddings times exp(logit_scale), about 15 to 25.

    Attributes:
        name: Name in tables.
    """

    name = "PickScore"

    def __init__(self, model: nn.Module, tokenizer: Any, image_size: int, mean: list[float], std: list[float]) -> None:
        """Combine model and tokenizer.

        Args:
            model: A `transformers.CLIPModel`.
            tokenizer: Tokenizer of the model.
            image_size: Side of the square input, in pixels.
            mean: Channel means for normalisation, 3 numbers in units of [0, 1].
            std: Channel standard deviations, 3 numbers.
        """
        super().__init__()
        self.model: Any = model
        self.image_size, self.mean, self.std = image_size, mean, std
        self.scale = float(self.model.state_dict()["logit_scale"].float().exp())  # before the weights are cast
        self._tokenizer = tokenizer

    @classmethod
    def from_pretrained(
        cls, source: str | Path = HUB_ID, processor: str | Path | None = None, precision: str = "fp32"
    ) -> Self:
        """Load the model and its processor.

        Args:
            source: A folder in `transformers`' format, or a hub id.
            processor: Folder or hub id of the tokenizer and the image settings; by default the model's own folder if it
                contains them, else those that PickScore was trained with.
            precision: Precision of the weights: fp32, fp16 or bf16. The score is always float32.

        Raises:
            ValueError: Files are missing and cannot be downloaded.
        """
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        dtype, folder = dtype_of(precision), Path(source).expanduser()
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise ValueError(f"the folder {folder} has no config.json; expected PickScore in transformers' format")
        own = (folder / "tokenizer_config.json").is_file() and (folder / "preprocessor_config.json").is_file()
        processor = processor or (folder if own else PROCESSOR)
        try:
            loaded: Any = CLIPModel.from_pretrained(
                str(folder if folder.exists() else source), dtype=torch.float32, output_loading_info=True
            )
            tokenizer = CLIPTokenizer.from_pretrained(str(processor))
            settings = CLIPImageProcessor.from_pretrained(str(processor))
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(_failure(folder, source, processor, error)) from error
        model, report = loaded
        if absent := [*report["missing_keys"], *map(str, report["mismatched_keys"])]:
            raise ValueError(
                f"{source} is not a complete CLIP: {', '.join(sorted(absent)[:4])} is missing or misshapen"
            )
        if len(tokenizer) != model.config.text_config.vocab_size:
            raise ValueError(
                f"the vocabulary in {processor} has {len(tokenizer)} tokens, but {source} has "
                f"{model.config.text_config.vocab_size}; pass the one it was trained with as `processor`"
            )
        size = int(settings.crop_size["height"])
        scorer = cls(model, tokenizer, size, list(settings.image_mean), list(settings.image_std))
        scorer.model.to(dtype)
        return scorer.eval().requires_grad_(False)

    @classmethod
    def on_meta(cls, source: str | Path = HUB_ID, processor: str | Path | None = None, precision: str = "fp32") -> Self:
        """Build the scorer without weights; see `scorers.meta`."""
        from transformers import CLIPConfig, CLIPModel

        from t2ifb.scorers.meta import blank_tokens

        folder = Path(source).expanduser()
        config: Any = CLIPConfig.from_pretrained(folder) if folder.is_dir() else CLIPConfig(**PUBLISHED)
        with torch.device("meta"):
            model = CLIPModel(config).to(dtype_of(precision))
        return cls(model, blank_tokens, config.vision_config.image_size, [0.5] * 3, [0.5] * 3)

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer to a folder, in `transformers`' format."""
        self._tokenizer.save_pretrained(folder)

    def score_tokens(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score preprocessed inputs.

        Args:
            pixel_values: (B, 3, S, S), normalised.
            input_ids: (B, L).
            attention_mask: (B, L).

        Returns:
            (B,) float32.
        """
        images = computed_in(
            self.model.dtype,
            lambda pixels: self.model.get_image_features(pixel_values=pixels).pooler_output,
            pixel_values,
        )
        texts = self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        cosine = (normalize(images, dim=-1) * normalize(texts.float(), dim=-1)).sum(-1)
        return self.scale * cosine

    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score B images for B prompts.

        Args:
            images: (B, 3, H, W) in [0, 1].
            prompts: B strings; truncated to the model's context.

        Returns:
            (B,) float32, differentiable with respect to the images.
        """
        check_counts(images, prompts)
        length = self.model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(prompts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        ids, mask = (torch.as_tensor(tokens[key]).to(images.device) for key in ("input_ids", "attention_mask"))
        return self.score_tokens(preprocess(images, self.image_size, self.mean, self.std, "transformers"), ids, mask)

    def cut_prompts(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that are longer than the model's context."""
        length = self.model.config.text_config.max_position_embeddings
        lengths = map(len, self._tokenizer(list(prompts), verbose=False)["input_ids"] if prompts else ())
        return [prompt for prompt, tokens in zip(prompts, lengths, strict=True) if tokens > length]


def _failure(folder: Path, source: str | Path, processor: str | Path, error: Exception) -> str:
    """Message for files that cannot be loaded."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if folder.exists() and Path(processor).expanduser().exists():
        return f"cannot load PickScore from {folder}: {first}"
    return (
        f"PickScore ({source}, {processor}) is not on this machine and cannot be downloaded. Download it where a "
        f"network is available: hf download {HUB_ID}; hf download {PROCESSOR} --exclude '*.bin' '*.safetensors'; then "
        f"pass their folders as `source` and `processor`. [{first}]"
    )
