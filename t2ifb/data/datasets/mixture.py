"""Combination of several preference data sets."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from t2ifb.data.errors import BadRecord
from t2ifb.data.prompts import spelled_alike
from t2ifb.data.rankings import PreferenceDataset, RankedPrompt

logger = logging.getLogger(__name__)


class Mixture:
    """Several data sets as one, with weights for the training split.

    A weight is the mean number of times that a ranking of the set appears per epoch: 1 is once, 2 is twice, and with
    0.25 each epoch has a different quarter of the set, so that four epochs cover it once. `t2ifb.data.samplers` sets
    the order: for a set with n rankings an epoch has round(weight · n) of them, at least one. Over any number of epochs
    the counts of two rankings of a set differ by at most one. (With the grouping `comparison`, n counts comparisons.)
    A set with weight 0 is used for evaluation only.

    All other splits are the union of the sets in `evaluated`, with each ranking once. Ranking ids are `<set>/<id>`.

    Sets share prompts (many come from DiffusionDB), so a training prompt of one may be a test prompt of another.
    Training rankings whose prompts are in a validation or test split are dropped, and the number is logged.
    """

    def __init__(
        self,
        datasets: Mapping[str, PreferenceDataset],
        weights: Mapping[str, float] | None = None,
        evaluated: Sequence[str] | None = None,
        held_out: Sequence[str] = ("validation", "test"),
    ) -> None:
        """Store the data sets and weights. Nothing is read yet.

        Args:
            datasets: Data sets by a chosen name.
            weights: Weights by name in the split `train`; 1 by default.
            evaluated: Names of the sets that form the validation and test splits; all by default.
            held_out: Splits of the sets in `evaluated` whose prompts are excluded from training, where available.

        Raises:
            ValueError: No data set is given, a name is unknown, a weight is negative, or all weights are 0.
        """
        if not datasets:
            raise ValueError("a mixture needs at least one data set; give datasets=… by name")
        weights = dict(weights or {})
        for name in [*weights, *(evaluated or ())]:
            if name not in datasets:
                raise ValueError(f"the mixture has no data set {name!r}; its data sets are {', '.join(datasets)}")
        self.datasets = dict(datasets)
        self.weights = {name: float(weights.get(name, 1.0)) for name in datasets}
        if min(self.weights.values()) < 0 or max(self.weights.values()) == 0:
            raise ValueError(f"weights must be at least 0 and not all 0, got {self.weights}")
        self.evaluated = tuple(evaluated if evaluated is not None else datasets)
        if not self.evaluated:
            raise ValueError(f"evaluated must name at least one data set of {', '.join(datasets)}")
        self.held_out = tuple(held_out)
        self._read: dict[tuple[str, str], list[RankedPrompt]] = {}
        self._counts: dict[str, dict[str, int]] = {}

    @property
    def errors(self) -> dict[str, list[BadRecord]]:
        """Errors of all sets, per split."""
        found: dict[str, list[BadRecord]] = {}
        for dataset in self.datasets.values():
            for split, errors in getattr(dataset, "errors", {}).items():
                found.setdefault(split, []).extend(errors)
        return found

    @property
    def missing_message(self) -> str:
        """Message for a missing split."""
        messages = (f"{name}: {getattr(each, 'missing_message', 'no data')}" for name, each in self.datasets.items())
        return "The mixture combines several data sets. " + " ".join(messages)

    def available(self, split: str) -> bool:
        """Whether every set of the split has it."""
        return all(self.datasets[name].available(split) for name in self._names(split))

    def download(self, splits: Iterable[str]) -> None:
        """Download the missing files of all sets that support downloads.

        Raises:
            ValueError: A set raised it.
        """
        wanted: dict[str, list[str]] = {}
        for split in splits:
            for name in self._names(split):
                if not self.datasets[name].available(split):
                    wanted.setdefault(name, []).append(split)
        for name, missing in wanted.items():
            dataset = self.datasets[name]
            if hasattr(dataset, "download"):
                dataset.download(missing)

    def rankings(self, split: str) -> list[RankedPrompt]:
        """The rankings of all sets, set by set, each once. Weights have no effect here.

        Raises:
            ValueError: A set lacks the split, or has errors and its `on_error` is `error`.
        """
        by_set = {name: self._rankings(name, split) for name in self._names(split)}
        if split == "train":
            by_set = self._without_held_out(by_set)
        self._counts[split] = {name: len(rankings) for name, rankings in by_set.items()}
        return [replace(r, prompt_id=f"{name}/{r.prompt_id}") for name, rankings in by_set.items() for r in rankings]

    def _without_held_out(self, by_set: dict[str, list[RankedPrompt]]) -> dict[str, list[RankedPrompt]]:
        """The training rankings whose prompts are in no evaluation split."""
        there = [(n, split) for n in self.evaluated for split in self.held_out if self.datasets[n].available(split)]
        prompts = {spelled_alike(ranking.prompt) for name, split in there for ranking in self._rankings(name, split)}
        kept = {name: [r for r in rs if spelled_alike(r.prompt) not in prompts] for name, rs in by_set.items()}
        for name, rankings in by_set.items():
            if dropped := len(rankings) - len(kept[name]):
                logger.warning(
                    "%s: dropped %d of %d training rankings because their prompts are in %s",
                    *(name, dropped, len(rankings), " or ".join(self.held_out)),
                )
        return kept

    def _rankings(self, name: str, split: str) -> list[RankedPrompt]:
        """Rankings of a set, read once."""
        if (name, split) not in self._read:
            self._read[name, split] = self.datasets[name].rankings(split)
        return self._read[name, split]

    def multiplicities(self, split: str) -> list[tuple[int, float]]:
        """Per set, in the order of `rankings(split)`: number of rankings, and how often each appears per epoch."""
        if split not in self._counts:
            self.rankings(split)
        weighted = split == "train"
        return [(count, self.weights[name] if weighted else 1.0) for name, count in self._counts[split].items()]

    def _names(self, split: str) -> tuple[str, ...]:
        """Names of the sets that form a split."""
        if split == "train":
            return tuple(name for name, weight in self.weights.items() if weight > 0)
        return self.evaluated
