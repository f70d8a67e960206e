"""Lightning data module of preference pairs, for fine-tuning on given rankings."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from t2ifb.data.batches import ComparisonIndex, FeatureSource, FeatureTable, rankings_hash
from t2ifb.data.datamodules import Pairs, PromptBatch, SampleBatches
from t2ifb.data.rankings import RankedPrompt
from t2ifb.data.samplers import ResumableDataModule, TrainingOrder, WeightedUnits


class PairDataModule(ResumableDataModule[PromptBatch]):
    """All comparisons of rankings, each once per epoch in a new order, and indices of held-out samples for validation.

    A ranking of k images gives up to C(k, 2) pairs; ties give none. With votes each pair that was voted on is one, with
    the share of the votes for its better image. A pair's weight is its part of its prompt's votes, one vote per pair
    without votes, scaled to a mean of 1 over all pairs, so that prompts count equally.
    The batch at a position is a function of (seed, position) alone. Several processes divide each batch among them.
    """

    def __init__(
        self,
        rankings: Sequence[RankedPrompt],
        latents: FeatureSource,
        latent_shape: Sequence[int],
        batch_size: int = 1,
        seed: int = 0,
        samples: int = 0,
        samples_per_batch: int = 32,
        blocks: Sequence[tuple[int, float]] | None = None,
    ) -> None:
        """Compute the training order.

        Args:
            rankings: The rankings to learn from.
            latents: Gives the latents of images, computed when training starts.
            latent_shape: (C, h, w) of a latent.
            batch_size: Pairs per update, over all processes.
            seed: Seed of the order.
            samples: Number of held-out samples per validation.
            samples_per_batch: Held-out samples per batch.
            blocks: How often consecutive blocks of rankings appear per epoch, as (number of rankings, times), the
                `multiplicities` of a `Mixture`; by default once.

        Raises:
            ValueError: There is no comparison, or batch_size is below 1.
        """
        super().__init__()
        self.rankings, self.source, self.latent_shape = list(rankings), latents, tuple(latent_shape)
        self.batch_size, self.seed = batch_size, seed
        self.samples, self.samples_per_batch = samples, samples_per_batch
        judgements = [ranking.judgements() for ranking in self.rankings]
        index = ComparisonIndex.build(self.rankings, [[(one.better, one.worse) for one in some] for some in judgements])
        self.prompt, self.ends = index.prompt_of_comparison, np.stack([index.better, index.worse], 1)
        text = index.text_of_prompt[self.prompt]
        votes = np.array([one.weight for some in judgements for one in some])
        self.shares = np.array([one.share for some in judgements for one in some])
        of_text = np.bincount(text, votes, minlength=1)
        self.weights = votes * len(text) / ((int(np.count_nonzero(of_text)) or 1) * of_text[text])
        parts = None if blocks is None else WeightedUnits.of_blocks(blocks, self.prompt)
        self.order = TrainingOrder(np.ones(len(text), np.int64), batch_size, seed, parts)
        self._images = [image for ranking in self.rankings for image in ranking.images]
        self._table: FeatureTable | None = None

    @property
    def prompts(self) -> list[str]:
        """The rankings' prompts."""
        return [ranking.prompt for ranking in self.rankings]

    @property
    def steps_per_epoch(self) -> int:
        """Number of updates per epoch."""
        return self.order.steps_per_epoch

    def prepare_data(self) -> None:
        """Compute the latents that are not stored. Lightning calls this in one process."""
        report = self.source.fill(self._images, [])
        if report.encoded:
            print(f"latents: {report.encoded:,} computed, {report.reused:,} reused, in {report.seconds:.1f} s")

    def train_batch(self, position: int) -> PromptBatch:
        """This process's share of the batch at a position, counted from 0 over all epochs."""
        if self._table is None:
            self._table = self.source.images(self._images)
        units = self.order.units(position)
        share = range(*self.share.indices(len(units)))
        chosen = units[self.share]
        latents = self._table.gather(self.ends[chosen].flatten()).reshape(-1, 2, *self.latent_shape)
        weights, shares = (torch.from_numpy(values[chosen]).float() for values in (self.weights, self.shares))
        prompts = [self.rankings[number].prompt for number in self.prompt[chosen]]
        return PromptBatch(position, prompts, list(share), len(units), pairs=Pairs(latents, weights, shares))

    def val_dataloader(self) -> SampleBatches:
        """This process's share of the indices of held-out samples, in batches."""
        return SampleBatches(range(self.samples)[self.share], self.samples_per_batch)

    def _settings(self) -> dict[str, Any]:
        known = {"seed": self.seed, "batch_size": self.batch_size, "draws": self.order.draws}
        return known | {"rankings": rankings_hash(self.rankings), "latents": self.source.embeddings_of}
