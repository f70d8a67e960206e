"""An endless row of prompt batches for fine-tuning, as a function of (seed, position)."""

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
        position: Of the batch, counted from 0 over all epochs.
        prompts: The texts.
        numbers: Of each prompt within the whole batch, so that noise does not depend on how the batch is shared.
        total: Prompts of the whole batch, over all processes.
        update: Which of the batch's updates this is, from 0.
        pairs: With preference pairs, for each prompt the better and the worse image (3, H, W) in [0, 1].
    """

    position: int
    prompts: list[str]
    numbers: list[int]
    total: int
    update: int = 0
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class PromptDataModule(LightningDataModule):
    """Every training prompt once an epoch, in another order each time; numbers of held-out samples for validation."""

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
        """Lay out the order.

        Args:
            prompts: To tune on.
            batch_size: Prompts an update, over all processes.
            seed: Of the order.
            samples: How many held-out samples a validation makes.
            samples_per_batch: How many of them at a time.
            updates_per_batch: How many updates each batch of prompts gives; it comes so often in a row.
            pairs: For each prompt the better and the worse image (3, H, W) in [0, 1], all of one size.

        Raises:
            ValueError: There are no prompts, or not as many pairs, or batch_size is below 1.
        """
        super().__init__()
        if not prompts:
            raise ValueError("there are no prompts to tune on")
        if pairs is not None and len(pairs) != len(prompts):
            raise ValueError(f"expected a pair for each of {len(prompts)} prompts, got {len(pairs)}")
        self.prompts, self.batch_size, self.seed, self.pairs = list(prompts), batch_size, seed, pairs
        self.samples, self.samples_per_batch, self.updates_per_batch = samples, samples_per_batch, updates_per_batch
        self.order = TrainingOrder(np.ones(len(self.prompts), np.int64), batch_size, seed)
        self._position = TrainingPosition(self, self.train_batch, self._settings)

    @property
    def steps_per_epoch(self) -> int:
        """Updates in which every prompt comes once."""
        return self.order.steps_per_epoch * self.updates_per_batch

    def setup(self, stage: str) -> None:
        """Begin at position 0, unless a checkpoint is loaded next."""
        self._position.reset()

    def train_batch(self, position: int) -> PromptBatch:
        """This process's share of the batch of an update, counted from 0 over all epochs."""
        position, update = divmod(position, self.updates_per_batch)
        units = self.order.units(position)
        share = range(*self._position.share.indices(len(units)))
        pairs = [] if self.pairs is None else [self.pairs[units[n]] for n in share]
        return PromptBatch(position, [self.prompts[units[n]] for n in share], list(share), len(units), update, pairs)

    def train_dataloader(self) -> EndlessBatches[PromptBatch]:
        """Endless batches from the present position on; see `TrainingPosition.batches` for what is refused."""
        return self._position.batches()

    def val_dataloader(self) -> "SampleBatches":
        """This process's share of the held-out samples' numbers, in batches."""
        return SampleBatches(range(self.samples)[self._position.share], self.samples_per_batch)

    def state_dict(self) -> dict[str, Any]:
        """The position, and what the order depends on besides."""
        return self._position.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's position until training begins."""
        self._position.restore(state_dict)

    def _settings(self) -> dict[str, Any]:
        texts = sha256("\0".join(self.prompts).encode("utf-8", "surrogatepass")).hexdigest()
        settings: dict[str, Any] = {"seed": self.seed, "batch_size": self.batch_size, "prompts": texts}
        if self.pairs is not None:
            pixels = (image.contiguous().numpy().tobytes() for pair in self.pairs for image in pair)
            settings["pairs"] = sha256(b"".join(pixels)).hexdigest()
        return settings | ({"updates_per_batch": self.updates_per_batch} if self.updates_per_batch > 1 else {})


class SampleBatches:
    """Numbers of samples, some at a time; a list of lists would be several loaders to Lightning."""

    def __init__(self, numbers: Sequence[int], size: int) -> None:
        """Cut `numbers` into batches of `size`."""
        self.batches = [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
