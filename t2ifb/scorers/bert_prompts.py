"""Prompts as the token ids of a BERT vocabulary, which the text towers of BLIP and ImageReward read."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from t2ifb.scorers.preprocess import check_counts
from t2ifb.scorers.weights import beside

MAX_TOKENS = 35
"""Of a prompt, [CLS] and [SEP] included; what is longer is cut off."""
VOCABULARY = "google-bert/bert-base-uncased"
"""Whose tokens the prompts become. [DEC] and [ENC], which the original adds, stand in no prompt that is scored."""


class BertPrompts:
    """Turns prompts into token ids with a BERT vocabulary, which is read when the first prompt comes."""

    def __init__(self, vocabulary: str | Path, ids: int, tokenizer: Any = None) -> None:
        """Name the vocabulary.

        Args:
            vocabulary: A folder with `vocab.txt` or `tokenizer.json`, or a hub id.
            ids: Rows of the text tower's table, among them the two of [DEC] and [ENC].
            tokenizer: Takes the place of the one that the vocabulary makes.
        """
        self.vocabulary, self.ids = vocabulary, ids
        self._tokenizer = tokenizer

    @classmethod
    def near(cls, checkpoint: Path, vocabulary: str | Path | None, tower: Any) -> Self:
        """The vocabulary that was named, else the one beside a checkpoint, else bert-base-uncased's."""
        if vocabulary is None and (beside(checkpoint, "vocab.txt") or beside(checkpoint, "tokenizer.json")):
            vocabulary = checkpoint.parent
        ids: int = tower.get_input_embeddings().num_embeddings
        return cls(VOCABULARY if vocabulary is None else vocabulary, ids)

    def __call__(self, prompts: list[str], images: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, (B, L) each, L at most `MAX_TOKENS`, where the B images are.

        Raises:
            ValueError: The vocabulary is missing or another one, or there are not as many prompts as images.
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
        # Where there is none, transformers may give an empty one, in which every word is unknown.
        if tokenizer is not None and tokenizer.cls_token == "[CLS]" and self.ids - 2 <= len(tokenizer) <= self.ids:
            return tokenizer
        found = "" if tokenizer is None else f" (found {len(tokenizer)} tokens, the text tower has {self.ids})"
        raise ValueError(
            f"the vocabulary {self.vocabulary} is not on this machine, or not the one of these weights{found}. Where "
            f"there is a connection: hf download {VOCABULARY} vocab.txt tokenizer.json tokenizer_config.json; then "
            "give its folder as `vocabulary`."
        )
