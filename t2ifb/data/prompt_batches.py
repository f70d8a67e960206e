"""Endless prompt batches for fine-tuning, as a function of (seed, position)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
from lightning import LightningDataModule
from torch import Tensor

from t2ifb.data.order import TrainingOrder
from t2ifb.data.position import EndlessBatches, TrainingPosition


@dataclass
class PromptBatch:
    """One process's share of a batch.

    Attributes:
        position: Index of the batch, counted from 0 over all epochs.
        prompts: The texts.
        numbers: Index of each prompt in the whole batch, so that noise does not depend on the number of processes.
        total: Number of prompts in the whole batch, over all processes.
        update: Index of the update on this batch, from 0.
        pairs: Better and worse image (3, H, W) in [0, 1] per prompt; only with preference pairs.
    """

    position: int
    prompts: list[str]
    numbers: list[int]
    total: int
    update: int = 0
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class PromptDataModule(LightningDataModule):
    """Training prompts, each once per epoch in a new order, and indices of held-out samples for validation."""

    def __init__(
        self,
        prompts: Sequence[str],
        batch_size: int = 1,
        seed: int = 0,
        samples: int = 0,
        samples_per_batch: int = 32,
        updates_per_batch: int = 1,
        pairs: Sequence[tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        """Compute the training order.

        Args:
            prompts: Training prompts.
            batch_size: Prompts per update, over all processes.
            seed: Seed of the order.
            samples: Number of held-out samples per validation.
            samples_per_batch: Held-out samples per batch.
            updates_per_batch: Updates per batch of prompts; the batch is repeated this many times in a row.
            pairs: Better and worse image (3, H, W) in [0, 1] per prompt, all of one size.

        Raises:
            ValueError: No prompts are given, the number of pairs differs, or batch_size is below 1.
        """
        super().__init__()
        if not prompts:
            raise ValueError("no prompts to tune on")
        if pairs is not None and len(pairs) != len(prompts):
            raise ValueError(f"expected a pair for each of {len(prompts)} prompts, got {len(pairs)}")
        self.prompts, self.batch_size, self.seed, self.pairs = list(prompts), batch_size, seed, pairs
        self.samples, self.samples_per_batch, self.updates_per_batch = samples, samples_per_batch, updates_per_batch
        self.order = TrainingOrder(np.ones(len(self.prompts), np.int64), batch_size, seed)
        self._position = TrainingPosition(self, self.train_batch, self._settings)

    @property
    def steps_per_epoch(self) -> int:
        """Number of updates per epoch."""
        return self.order.steps_per_epoch * self.updates_per_batch

    def setup(self, stage: str) -> None:
        """Start at position 0. A checkpoint that is loaded later overrides this."""
        self._position.reset()

    def train_batch(self, position: int) -> PromptBatch:
        """This process's share of the batch at a position, counted from 0 over all epochs."""
        position, update = divmod(position, self.updates_per_batch)
        units = self.order.units(position)
        share = range(*self._position.share.indices(len(units)))
        pairs = [] if self.pairs is None else [self.pairs[units[n]] for n in share]
        return PromptBatch(position, [self.prompts[units[n]] for n in share], list(share), len(units), update, pairs)

    def train_dataloader(self) -> EndlessBatches[PromptBatch]:
        """Endless batches from the current position. `TrainingPosition.batches` lists the errors."""
        return self._position.batches()

    def val_dataloader(self) -> "SampleBatches":
        """This process's share of the indices of held-out samples, in batches."""
        return SampleBatches(range(self.samples)[self._position.share], self.samples_per_batch)

    def state_dict(self) -> dict[str, Any]:
        """The position and the settings that determine the order."""
        return self._position.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store a checkpoint's position until training starts."""
        self._position.restore(state_dict)

    def _settings(self) -> dict[str, Any]:
        texts = sha256("\0".join(self.prompts).encode("utf-8", "surrogatepass")).hexdigest()
        settings: dict[str, Any] = {"seed": self.seed, "batch_size": self.batch_size, "prompts": texts}
        if self.pairs is not None:
            pixels = (image.contiguous().numpy().tobytes() for pair in self.pairs for image in pair)
            settings["pairs"] = sha256(b"".join(pixels)).hexdigest()
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
