"""A split's rankings as index tensors over what a model is fed, and batches of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from t2ifb.data.comparison_index import ComparisonIndex, Index
from t2ifb.data.embedding_cache import FillReport
from t2ifb.data.rankings import Image, RankedPrompt


class Gathered(Protocol):
    """Tensors of N items, read when gathered."""

    def __len__(self) -> int: ...

    def gather(self, index: Index | slice = ...) -> Tensor:
        """Of some items, (n, ...); of all by default."""
        ...


class Feed(Protocol):
    """What turns images and prompts into what a model is fed: `EmbeddingCache` or `PixelFeed`."""

    @property
    def embeddings_of(self) -> str | None:
        """Fingerprint of the encoder whose embeddings it gives, None if it gives something else."""
        ...

    def fill(self, images: Sequence[Image], prompts: Sequence[str]) -> FillReport:
        """Make what is not there yet."""
        ...

    def images(self, images: Sequence[Image]) -> Gathered:
        """Of N images, in their order."""
        ...

    def prompts(self, prompts: Sequence[str]) -> Gathered:
        """Of N texts, in their order."""
        ...


@dataclass
class RewardBatch:
    """n images with c comparisons among them.

    Attributes:
        images: (n, D) float32 embeddings; pixels (n, 3, S, S) in [0, 1] for an encoder that is tuned.
        prompts: (n, D) float32 embeddings, or ids (n, L); row i is the prompt of image i.
        better: (c,) int64, indices into the n images.
        worse: (c,) int64.
        prompt_index: (c,) int64, the ranking that each comparison comes from, as its number in the split.
        image_index: (n,) int64, the images' numbers in the split.
        total_comparisons: Comparisons of the whole batch over all processes. The mean loss of the whole batch is the
            sum of the processes' losses divided by this; a process's own share may be smaller than another's, or even
            empty when there are fewer rankings than processes.
    """

    images: Tensor
    prompts: Tensor
    better: Tensor
    worse: Tensor
    prompt_index: Tensor
    image_index: Tensor
    total_comparisons: int

    def to(self, device: torch.device | str) -> Self:
        """The batch on another device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True)
class EncodedRankings:
    """One split: P rankings with N images and C comparisons. A ranking's images and comparisons are consecutive.

    Attributes:
        images: What the model is fed of the N images.
        prompts: The same of the P prompts.
        prompt_ids: P ids.
        ranks: (N,) int64, 1 is best.
        better: (C,) int64, the number of the better image in the split.
        worse: (C,) int64.
        prompt_of_image: (N,) int64, from 0 to P - 1.
        prompt_of_comparison: (C,) int64.
    """

    images: Gathered
    prompts: Gathered
    prompt_ids: tuple[str, ...]
    ranks: Tensor
    better: Tensor
    worse: Tensor
    prompt_of_image: Tensor
    prompt_of_comparison: Tensor

    @classmethod
    def build(cls, rankings: Sequence[RankedPrompt], feed: Feed) -> Self:
        """Index rankings whose images and prompts the feed has.

        Raises:
            ValueError: Some are not in an embedding cache.
        """
        images: list[Image] = [image for ranking in rankings for image in ranking.images]
        index = ComparisonIndex.build(rankings)
        return cls(
            images=feed.images(images),
            prompts=feed.prompts([ranking.prompt for ranking in rankings]),
            prompt_ids=tuple(ranking.prompt_id for ranking in rankings),
            ranks=torch.from_numpy(index.ranks),
            better=torch.from_numpy(index.better),
            worse=torch.from_numpy(index.worse),
            prompt_of_image=torch.from_numpy(index.prompt_of_image),
            prompt_of_comparison=torch.from_numpy(index.prompt_of_comparison),
        )

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @cached_property
    def images_per_prompt(self) -> Index:
        """(P,), how many images each ranking has."""
        return np.bincount(self.prompt_of_image.numpy(), minlength=len(self)).astype(np.int64)

    @cached_property
    def comparisons_per_prompt(self) -> Index:
        """(P,), how many comparisons each ranking gives; 0 if all are ties."""
        return np.bincount(self.prompt_of_comparison.numpy(), minlength=len(self)).astype(np.int64)

    def batch_of_prompts(self, prompts: Index, total_comparisons: int | None = None) -> RewardBatch:
        """All images and comparisons of some rankings; each image is there once.

        Args:
            prompts: (p,), numbers of distinct rankings.
            total_comparisons: Of the whole batch that this is a part of; by default this is the whole.
        """
        counts = self.images_per_prompt[prompts]
        images = _ranges(self._first_image[prompts], counts)
        pair_counts = self.comparisons_per_prompt[prompts]
        comparisons = _ranges(self._first_comparison[prompts], pair_counts)
        # From the image's number in the split to its number in the batch, the same step for all of a ranking.
        shift = torch.from_numpy(np.repeat(np.cumsum(counts) - counts - self._first_image[prompts], pair_counts))
        better, worse = self.better[comparisons] + shift, self.worse[comparisons] + shift
        return self._batch(images, better, worse, comparisons, total_comparisons)

    def batch_of_comparisons(self, comparisons: Index, total_comparisons: int | None = None) -> RewardBatch:
        """Both images of some comparisons; an image is there as often as it is compared.

        Args:
            comparisons: (c,), numbers of comparisons.
            total_comparisons: Of the whole batch that this is a part of; by default this is the whole.
        """
        images = torch.cat([self.better[comparisons], self.worse[comparisons]]).numpy()
        better, worse = torch.arange(2 * len(comparisons)).chunk(2) if len(comparisons) else (torch.arange(0),) * 2
        return self._batch(images, better, worse, comparisons, total_comparisons)

    def _batch(
        self, images: Index, better: Tensor, worse: Tensor, comparisons: Index, total_comparisons: int | None
    ) -> RewardBatch:
        return RewardBatch(
            images=self.images.gather(images),
            prompts=self.prompts.gather(self.prompt_of_image.numpy()[images]),
            better=better,
            worse=worse,
            prompt_index=self.prompt_of_comparison[comparisons],
            image_index=torch.from_numpy(images),
            total_comparisons=len(comparisons) if total_comparisons is None else total_comparisons,
        )

    @cached_property
    def _first_image(self) -> Index:
        return np.cumsum(self.images_per_prompt) - self.images_per_prompt

    @cached_property
    def _first_comparison(self) -> Index:
        return np.cumsum(self.comparisons_per_prompt) - self.comparisons_per_prompt


class RewardBatches:
    """Batches of a split in a fixed order, a sized iterable that Lightning takes as a loader."""

    def __init__(self, count: int, batch: Callable[[int], RewardBatch]) -> None:
        """Give the number of batches, and how to make the one at a position."""
        self._count = count
        self._batch = batch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[RewardBatch]:
        return map(self._batch, range(self._count))


def _ranges(starts: Index, lengths: Index) -> Index:
    """The numbers from each start on, as many as its length, one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    steps: Index = np.repeat(starts - (ends - lengths), lengths)
    return steps + np.arange(total)
