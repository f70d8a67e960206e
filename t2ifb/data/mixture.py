"""Several preference data sets as one."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from t2ifb.data.faults import Fault
from t2ifb.data.rankings import PreferenceDataset, RankedPrompt
from t2ifb.data.shares import spelled_alike

logger = logging.getLogger(__name__)


class Mixture:
    """Data sets side by side; the training split by weights.

    A weight says how often a ranking of the set comes in an epoch: 1 is once, as if there were no weights, 2 is twice,
    and with 0.25 each epoch has another quarter of the set, so that four epochs have all of it once. What comes when is
    decided in `t2ifb.data.order`: of a set with n rankings an epoch has round(weight · n), at least one, and in any
    number of epochs no ranking comes more than once more often than another of its set. (With the grouping
    `comparison`, n counts comparisons.) A set with weight 0 is evaluated on only.

    All other splits are the union of the sets in `evaluated`, each ranking once. The id of a ranking is `<set>/<id>`.

    Sets share prompts (many come from DiffusionDB), and one's training prompt may be another's test prompt. Training
    rankings of prompts that are validated or tested on are left out, which is said.
    """

    def __init__(
        self,
        datasets: Mapping[str, PreferenceDataset],
        weights: Mapping[str, float] | None = None,
        evaluated: Sequence[str] | None = None,
        training_split: str = "train",
        held_out: Sequence[str] = ("validation", "test"),
    ) -> None:
        """Name the data sets; nothing is read yet.

        Args:
            datasets: By a name of one's choice.
            weights: By name; 1 for a set that is not named.
            evaluated: The sets that validation and test splits are taken from; all by default.
            training_split: The split that weights are for.
            held_out: Splits of the sets in `evaluated` whose prompts are not trained on, as far as they are there.

        Raises:
            ValueError: There are no data sets, a name is none of theirs, or a weight is negative or all are 0.
        """
        if not datasets:
            raise ValueError(
                "a mixture needs data sets: +dataset@dataset.datasets.<name>=<option>, with an option of conf/dataset"
            )
        weights = dict(weights or {})
        for name in [*weights, *(evaluated or ())]:
            if name not in datasets:
                raise ValueError(f"no data set {name!r} in the mixture; there is {', '.join(datasets)}")
        self.datasets = dict(datasets)
        self.weights = {name: float(weights.get(name, 1.0)) for name in datasets}
        if min(self.weights.values()) < 0 or max(self.weights.values()) == 0:
            raise ValueError(f"weights must not be negative and not all 0, got {self.weights}")
        self.evaluated = tuple(evaluated if evaluated is not None else datasets)
        if not self.evaluated:
            raise ValueError(f"evaluated must name a data set; there is {', '.join(datasets)}")
        self.training_split = training_split
        self.held_out = tuple(held_out)
        self._read: dict[tuple[str, str], list[RankedPrompt]] = {}
        self._counts: dict[str, dict[str, int]] = {}

    @property
    def faults(self) -> dict[str, list[Fault]]:
        """By split, what was found in the sets."""
        found: dict[str, list[Fault]] = {}
        for dataset in self.datasets.values():
            for split, faults in getattr(dataset, "faults", {}).items():
                found.setdefault(split, []).extend(faults)
        return found

    @property
    def missing_message(self) -> str:
        """What to tell when a split is not available."""
        messages = (f"{name}: {getattr(each, 'missing_message', 'see there')}" for name, each in self.datasets.items())
        return "It is made of several sets. " + " ".join(messages)

    def available(self, split: str) -> bool:
        """Whether all sets that the split is taken from have it."""
        return all(self.datasets[name].available(split) for name in self._names(split))

    def download(self, splits: Iterable[str]) -> None:
        """Download what the sets lack; those that cannot be downloaded are left as they are.

        Raises:
            ValueError: See the sets.
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
        """The rankings of the sets one set after the other, each ranking once; weights change nothing here.

        Raises:
            ValueError: A set lacks the split, or has faults and stops at them.
        """
        by_set = {name: self._rankings(name, split) for name in self._names(split)}
        if split == self.training_split:
            by_set = self._without_held_out(by_set)
        self._counts[split] = {name: len(rankings) for name, rankings in by_set.items()}
        return [replace(r, prompt_id=f"{name}/{r.prompt_id}") for name, rankings in by_set.items() for r in rankings]

    def _without_held_out(self, by_set: dict[str, list[RankedPrompt]]) -> dict[str, list[RankedPrompt]]:
        """The training rankings whose prompts are not evaluated on."""
        there = [(n, split) for n in self.evaluated for split in self.held_out if self.datasets[n].available(split)]
        prompts = {spelled_alike(ranking.prompt) for name, split in there for ranking in self._rankings(name, split)}
        kept = {name: [r for r in rs if spelled_alike(r.prompt) not in prompts] for name, rs in by_set.items()}
        for name, rankings in by_set.items():
            if dropped := len(rankings) - len(kept[name]):
                logger.warning(
                    "%s: %d of %d training rankings left out, for their prompts are in %s",
                    *(name, dropped, len(rankings), " or ".join(self.held_out)),
                )
        return kept

    def _rankings(self, name: str, split: str) -> list[RankedPrompt]:
        """A set's rankings, read once."""
        if (name, split) not in self._read:
            self._read[name, split] = self.datasets[name].rankings(split)
        return self._read[name, split]

    def multiplicities(self, split: str) -> list[tuple[int, float]]:
        """What `rankings(split)` gave: of each set in turn, how many rankings, and how often each comes in an epoch."""
        weighted = split == self.training_split
        return [(count, self.weights[name] if weighted else 1.0) for name, count in self._counts[split].items()]

    def _names(self, split: str) -> tuple[str, ...]:
        """The sets that a split is taken from."""
        if split == self.training_split:
            return tuple(name for name, weight in self.weights.items() if weight > 0)
        return self.evaluated
