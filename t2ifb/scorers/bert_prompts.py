"""Tokenizer with a BERT vocabulary, for the text towers of BLIP and ImageReward."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from t2ifb.scorers.preprocess import check_counts
from t2ifb.scorers.weights import beside

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
