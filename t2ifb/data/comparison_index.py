"""Comparisons of a split as index arrays."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from t2ifb.data.rankings import RankedPrompt
from t2ifb.data.shares import spelled_alike

Index = NDArray[np.int64]


@dataclass(frozen=True)
class ComparisonIndex:
    """P rankings with N images and C comparisons. A ranking's images and comparisons are consecutive.

    Attributes:
        ranks: (N,), 1 is best.
        better: (C,), index of the better image in the split.
        worse: (C,), index of the worse image.
        prompt_of_image: (N,), from 0 to P - 1.
        prompt_of_comparison: (C,), index of the comparison's ranking.
        text_of_prompt: (P,), index of the prompt's text, from 0. Several rankings may share a text. Statistics that
            need independent prompts group by this index.
    """

    ranks: Index
    better: Index
    worse: Index
    prompt_of_image: Index
    prompt_of_comparison: Index
    text_of_prompt: Index

    @classmethod
    def build(cls, rankings: Sequence[RankedPrompt]) -> Self:
        """Number the images and comparisons of rankings."""
        counts = np.array([len(ranking.images) for ranking in rankings], np.int64)
        pairs = [np.array(ranking.comparisons(), np.int64).reshape(-1, 2) for ranking in rankings]
        pair_counts = np.array([len(pair) for pair in pairs], np.int64)
        numbers = np.arange(len(rankings))
        texts: dict[str, int] = {}
        text_of_prompt = [texts.setdefault(spelled_alike(ranking.prompt), len(texts)) for ranking in rankings]
        comparisons = np.concatenate([np.empty((0, 2), np.int64), *pairs])
        comparisons += np.repeat(np.cumsum(counts) - counts, pair_counts)[:, None]
        return cls(
            ranks=np.array([rank for ranking in rankings for rank in ranking.ranks], np.int64),
            better=comparisons[:, 0].copy(),
            worse=comparisons[:, 1].copy(),
            prompt_of_image=np.repeat(numbers, counts),
            prompt_of_comparison=np.repeat(numbers, pair_counts),
            text_of_prompt=np.array(text_of_prompt, np.int64),
        )

    @property
    def texts(self) -> int:
        """Number of distinct prompts."""
        return int(self.text_of_prompt.max(initial=-1)) + 1


def rankings_hash(rankings: Sequence[RankedPrompt]) -> str:
    """Hash of ids, prompts and ranks: identifies the data behind a metric."""
    records = [(ranking.prompt_id, ranking.prompt, ranking.ranks) for ranking in rankings]
    return hashlib.sha256(repr(records).encode()).hexdigest()[:16]
