"""Lightning data modules: batches of comparisons for a reward model, batches of prompts for fine-tuning."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal, TypeAlias

import numpy as np
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from t2ifb.data.batches import EncodedRankings, FeatureSource, Index, RewardBatch, RewardBatches, rankings_hash
from t2ifb.data.embeddings import report_cut
from t2ifb.data.rankings import PreferenceDataset, RankedPrompt
from t2ifb.data.samplers import ResumableDataModule, TrainingOrder, WeightedUnits, cuts, drawn_units

__all__ = ["EncodedRankings", "RewardBatch", "RewardBatches", "RewardDataModule"]

Grouping: TypeAlias = Literal["prompt", "comparison"]


class RewardDataModule(ResumableDataModule[RewardBatch]):
    """Comparisons of a preference data set, batched over cached embeddings or over pixels.

    The training loader is endless. Its batch at a position is a function of (seed, position) alone. Epoch e is a
    permutation of all comparisons drawn from (seed, e): each comparison appears once per epoch, or as often as the data
    set's `multiplicities` say (`Mixture`). Several processes divide each batch among them; together they train on the
    same comparisons as one process.
    """

    def __init__(
        self,
        dataset: PreferenceDataset,
        feed: FeatureSource,
        grouping: Grouping = "prompt",
        batch_size: int = 256,
        seed: int = 0,
        splits: Sequence[str] = ("train", "validation", "test"),
        train_prompts: int | None = None,
    ) -> None:
        """Store the settings. Data are read on first use.

        Args:
            dataset: The rankings.
            feed: Gives embeddings of images and prompts, computed when a split is first needed, or pixels and tokens.
            grouping: `prompt` puts whole rankings into a batch, with each of their images once; `comparison` shuffles
                single comparisons and includes both images of each.
            batch_size: Approximate number of comparisons per batch, over all processes.
            seed: Seed of the training order.
            splits: Training split, validation split, then any number of test splits.
            train_prompts: Number of rankings to train on, drawn with the seed; all by default. Subsets are nested: with
                one seed, a smaller subset is contained in a larger one.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__()
        if grouping not in ("prompt", "comparison"):
            raise ValueError(f"grouping must be prompt or comparison, not {grouping!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if len(splits) < 2:
            raise ValueError(f"splits must name a training and a validation split, not {list(splits)}")
        if train_prompts is not None and hasattr(dataset, "multiplicities"):
            raise ValueError("train_prompts works with a single data set; for a mixture, set the weights of its parts")
        self.dataset = dataset
        self.feed = feed
        self.grouping = grouping
        self.batch_size = batch_size
        self.seed = seed
        self.splits = tuple(splits)
        self.train_prompts = train_prompts
        self._rankings: dict[str, list[RankedPrompt]] = {}
        self._encoded: dict[str, EncodedRankings] = {}
        self._order: TrainingOrder | None = None
        self._told = False
        self._units: Index = np.empty(0, np.int64)

    def prepare_data(self) -> None:
        """Encode the images and prompts that are not in the cache. Lightning calls this in one process."""
        rankings = [ranking for split in self.splits for ranking in self.rankings(split)]
        prompts = [ranking.prompt for ranking in rankings for _ in ranking.images]
        report = self.feed.fill([image for ranking in rankings for image in ranking.images], prompts)
        if not self._told:
            rank_zero_only(report_cut)(report.cut, prompts, "the encoder")
        self._told = True

    def rankings(self, split: str) -> list[RankedPrompt]:
        """Rankings of a split, read once.

        Raises:
            ValueError: The split is missing, empty or has fewer than `train_prompts` rankings.
        """
        if split not in self._rankings:
            if not self.dataset.available(split):
                hint = getattr(self.dataset, "missing_message", "Run `python -m t2ifb.prepare`.")
                raise ValueError(f"The split {split!r} is missing. {hint}")
            if not (rankings := self.dataset.rankings(split)):
                raise ValueError(f"The split {split!r} has no usable rankings.")
            if split == self.splits[0] and self.train_prompts is not None:
                if not 1 <= self.train_prompts <= len(rankings):
                    raise ValueError(f"train_prompts={self.train_prompts}: expected a number from 1 to {len(rankings)}")
                rankings = [rankings[number] for number in drawn_units(len(rankings), self.train_prompts, self.seed)]
            self._rankings[split] = rankings
        return self._rankings[split]

    def encoded(self, split: str) -> EncodedRankings:
        """The split as index tensors. Missing embeddings are computed first."""
        if split not in self._encoded:
            rankings = self.rankings(split)
            prompts = [r.prompt for r in rankings for _ in r.images]
            self.feed.fill([image for r in rankings for image in r.images], prompts)
            self._encoded[split] = EncodedRankings.build(rankings, self.feed)
        return self._encoded[split]

    def hashes(self) -> dict[str, str]:
        """Hash of ids, prompts and ranks per split: identifies the data behind the metrics."""
        return {split: rankings_hash(self.rankings(split)) for split in self.splits}

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch. Reads the training split."""
        return self._training_order().steps_per_epoch

    def train_batch(self, position: int) -> RewardBatch:
        """This process's share of the training batch at a position, counted from 0 over all epochs."""
        order, encoded = self._training_order(), self.encoded(self.splits[0])
        units = self._units[order.units(position)]
        share = units[self.share]
        if self.grouping == "prompt":
            return encoded.batch_of_prompts(share, encoded.weight_of_prompts(units))
        return encoded.batch_of_comparisons(share, encoded.weight_of_comparisons(units))

    def evaluation_batches(self, split: str) -> RewardBatches:
        """This process's share of a split's rankings, whole and in order, about `batch_size` images per batch."""
        encoded = self.encoded(split)
        images = encoded.images_per_prompt
        borders = cuts(images, min(-(-int(images.sum()) // self.batch_size), len(images)))

        def batch(number: int) -> RewardBatch:
            prompts = np.arange(borders[number], borders[number + 1])
            return encoded.batch_of_prompts(prompts[self.share], encoded.weight_of_prompts(prompts))

        return RewardBatches(len(borders) - 1, batch)

    def val_dataloader(self) -> RewardBatches:
        """Batches of the validation split."""
        return self.evaluation_batches(self.splits[1])

    def _settings(self) -> dict[str, Any]:
        order = self._training_order()
        return {
            "seed": self.seed,
            "grouping": self.grouping,
            "batch_size": self.batch_size,
            "comparisons": int(order.weights.sum()),
            "steps_per_epoch": order.steps_per_epoch,
            "draws": order.draws,
            "rankings": [rankings_hash(self.rankings(split)) for split in self.splits[:2]],
            "embeddings": self.feed.embeddings_of,
        }

    def _training_order(self) -> TrainingOrder:
        """Order over rankings that have comparisons, or over comparisons. `_units` holds their indices."""
        if self._order is None:
            encoded = self.encoded(self.splits[0])
            counts = encoded.comparisons_per_prompt
            by_prompt = self.grouping == "prompt"
            self._units = np.flatnonzero(counts) if by_prompt else np.arange(int(counts.sum()))
            weights = counts[self._units] if by_prompt else np.ones(len(self._units), np.int64)
            ranking = self._units if by_prompt else encoded.prompt_of_comparison.numpy()
            self._order = TrainingOrder(weights, self.batch_size, self.seed, self._parts(ranking))
        return self._order

    def _parts(self, ranking: Index) -> list[WeightedUnits] | None:
        """Multiplicities of the units if the data set has them (`Mixture`). `ranking` (U,) is each unit's ranking."""
        if not hasattr(self.dataset, "multiplicities"):
            return None
        return WeightedUnits.of_blocks(self.dataset.multiplicities(self.splits[0]), ranking)


@dataclass
class Pairs:
    """Preference pairs of a batch, one per prompt.

    Attributes:
        latents: (n, 2, C, h, w) float32, the better image first.
        weights: (n,) float32, each pair's weight in the loss; their mean over the data set is 1.
        shares: (n,) float32, share of the votes for the better image, from 0.5 to 1.
    """

    latents: Tensor
    weights: Tensor
    shares: Tensor


@dataclass
class PromptBatch:
    """One process's share of a batch.

    Attributes:
        position: Index of the batch, counted from 0 over all epochs.
        prompts: The texts.
        numbers: Index of each prompt in the whole batch, so that noise does not depend on the number of processes.
        total: Number of prompts in the whole batch, over all processes.
        update: Index of the update on this batch, from 0.
        pairs: A preference pair per prompt, for algorithms that learn from those.
    """

    position: int
    prompts: list[str]
    numbers: list[int]
    total: int
    update: int = 0
    pairs: Pairs | None = None

    def parts(self, size: int) -> Iterator["PromptBatch"]:
        """The same prompts in batches of at most `size`, without pairs."""
        for start in range(0, len(self.prompts), size):
            some = slice(start, start + size)
            yield PromptBatch(self.position, self.prompts[some], self.numbers[some], self.total, self.update)


class PromptDataModule(ResumableDataModule[PromptBatch]):
    """Training prompts, each once per epoch in a new order, and indices of held-out samples for validation."""

    def __init__(
        self,
        prompts: Sequence[str],
        batch_size: int = 1,
        seed: int = 0,
        samples: int = 0,
        samples_per_batch: int = 32,
        updates_per_batch: int = 1,
    ) -> None:
        """Compute the training order.

        Args:
            prompts: Training prompts.
            batch_size: Prompts per update, over all processes.
            seed: Seed of the order.
            samples: Number of held-out samples per validation.
            samples_per_batch: Held-out samples per batch.
            updates_per_batch: Updates per batch of prompts; the batch is repeated this many times in a row.

        Raises:
            ValueError: No prompts are given, or batch_size is below 1.
        """
        super().__init__()
        if not prompts:
            raise ValueError("no prompts to tune on")
        self.prompts, self.batch_size, self.seed = list(prompts), batch_size, seed
        self.samples, self.samples_per_batch, self.updates_per_batch = samples, samples_per_batch, updates_per_batch
        self.order = TrainingOrder(np.ones(len(self.prompts), np.int64), batch_size, seed)

    @property
    def steps_per_epoch(self) -> int:
        """Number of updates per epoch."""
        return self.order.steps_per_epoch * self.updates_per_batch

    def train_batch(self, position: int) -> PromptBatch:
        """This process's share of the batch at a position, counted from 0 over all epochs."""
        position, update = divmod(position, self.updates_per_batch)
        units = self.order.units(position)
        share = range(*self.share.indices(len(units)))
        return PromptBatch(position, [self.prompts[units[n]] for n in share], list(share), len(units), update)

    def val_dataloader(self) -> "SampleBatches":
        """This process's share of the indices of held-out samples, in batches."""
        return SampleBatches(range(self.samples)[self.share], self.samples_per_batch)

    def _settings(self) -> dict[str, Any]:
        texts = sha256("\0".join(self.prompts).encode("utf-8", "surrogatepass")).hexdigest()
        settings: dict[str, Any] = {"seed": self.seed, "batch_size": self.batch_size, "prompts": texts}
        return settings | ({"updates_per_batch": self.updates_per_batch} if self.updates_per_batch > 1 else {})


class SampleBatches:
    """Batches of sample indices. Lightning would take a list of lists as several loaders."""

    def __init__(self, numbers: Sequence[int], size: int) -> None:
        """Cut `numbers` into batches of `size`."""
        self.batches = [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
