"""Accuracy table from scores, shared by reward runs and table 1."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from t2ifb.data.batches import ComparisonIndex
from t2ifb.evaluation.metrics import PreferenceResult, agreement, evaluate_preference, mean_kendall_tau
from t2ifb.evaluation.statistics import Interval
from t2ifb.evaluation.tables import CEILING, RANDOM, REFERENCE, Row


class AccuracyTable:
    """Several scorers on the rankings of one split.

    Attributes:
        scores: Scores (N,) by scorer; `random` is the first.
        results: Preference accuracy by scorer.
    """

    def __init__(
        self,
        index: ComparisonIndex,
        scores: Mapping[str, ArrayLike],
        published: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        """Compute the preference accuracies.

        Args:
            index: Comparisons of the split.
            scores: Scores (N,) by name, in row order.
            published: Published accuracies in per cent, by name.
            seed: Seed of the bootstrap and the random scores.

        Raises:
            ValueError: A score is not finite.
        """
        self.index, self.published, self.seed = index, dict(published or {}), seed
        self.scores: dict[str, NDArray[Any]] = {RANDOM: random_scores(len(index.ranks), seed)}
        self.scores |= {name: np.asarray(score) for name, score in scores.items()}
        texts = index.text_of_prompt[index.prompt_of_comparison]
        self.results: dict[str, PreferenceResult] = {
            name: evaluate_preference(score, index.better, index.worse, texts, seed)
            for name, score in self.scores.items()
        }

    @cached_property
    def taus(self) -> dict[str, Interval]:
        """Kendall's tau by scorer, see `mean_kendall_tau`."""
        numbers = self.index.ranks, self.index.prompt_of_image, self.index.text_of_prompt
        return {name: mean_kendall_tau(score, *numbers, self.seed) for name, score in self.scores.items()}

    def agreement(self) -> tuple[list[str], NDArray[np.float64]]:
        """Scorers without `random`, and the share of comparisons on which each pair agrees."""
        names = [name for name in self.scores if name != RANDOM]
        return names, agreement([self.scores[name] for name in names], self.index.better, self.index.worse)

    def rows(self, with_tau: bool = False, speeds: Mapping[str, float] | None = None) -> list[Row]:
        """Table rows: measured scorers, then those with only a published accuracy.

        Args:
            with_tau: Include Kendall's tau.
            speeds: Images per second, by name.
        """
        reference = self.results.get(REFERENCE)
        measured = [
            Row(
                name=name,
                accuracy=result.accuracy,
                by_prompt=result.accuracy_by_prompt,
                ties=result.ties,
                comparisons=result.comparisons,
                against=result.difference(reference, self.seed) if reference and result is not reference else None,
                tau=self.taus[name] if with_tau else None,
                images_per_second=(speeds or {}).get(name),
                published=self.published.get(name),
            )
            for name, result in self.results.items()
        ]
        return measured + [Row(name, published=v) for name, v in self.published.items() if name not in self.results]


def random_scores(count: int, seed: int) -> NDArray[np.float32]:
    """Uniform random scores (count,)."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)).numpy()


def display_names(scorers: Mapping[str, Any]) -> dict[str, str]:
    """Names of scorers in tables: the class's `name`, or the key if it has none or the name is taken.

    Args:
        scorers: Scorers, classes or other objects that may have a `name`, by key.

    Returns:
        Names by key, in the same order. They are unique and differ from the reserved row names.
    """
    names: dict[str, str] = {}
    for key, scorer in scorers.items():
        taken = {RANDOM, CEILING, *names.values()}
        own = getattr(scorer, "name", None)
        wishes = [own if isinstance(own, str) else key, key, *(f"{key} ({n})" for n in range(2, len(scorers) + 4))]
        names[key] = next(wish for wish in wishes if wish not in taken)
    return names
