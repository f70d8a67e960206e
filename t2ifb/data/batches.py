"""A split's comparisons as index tensors over the model's inputs, and batches of them."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t2ifb.data.embeddings import FillReport
from t2ifb.data.prompts import spelled_alike
from t2ifb.data.rankings import Image, RankedPrompt

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
    def build(cls, rankings: Sequence[RankedPrompt], pairs: Sequence[Sequence[tuple[int, int]]] | None = None) -> Self:
        """Number the images and comparisons of rankings.

        Args:
            rankings: P rankings.
            pairs: Indices of the better and the worse image per ranking; by default the comparisons of the ranks.
        """
        counts = np.array([len(ranking.images) for ranking in rankings], np.int64)
        given = [ranking.comparisons() for ranking in rankings] if pairs is None else pairs
        of_rankings = [np.array(pair, np.int64).reshape(-1, 2) for pair in given]
        pair_counts = np.array([len(pair) for pair in of_rankings], np.int64)
        numbers = np.arange(len(rankings))
        texts: dict[str, int] = {}
        text_of_prompt = [texts.setdefault(spelled_alike(ranking.prompt), len(texts)) for ranking in rankings]
        comparisons = np.concatenate([np.empty((0, 2), np.int64), *of_rankings])
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
    """Hash of ids, prompts, ranks and votes: identifies the data behind a metric."""
    records = [(r.prompt_id, r.prompt, r.ranks, *([r.votes] if r.votes else [])) for r in rankings]
    return hashlib.sha256(repr(records).encode()).hexdigest()[:16]


class FeatureTable(Protocol):
    """Features of N items, read when gathered."""

    def __len__(self) -> int: ...

    def gather(self, index: Index | slice = ...) -> Tensor:
        """Features (n, ...) of the selected items; all by default."""
        ...


class FeatureSource(Protocol):
    """Source of a model's inputs for images and prompts: `EmbeddingCache` or `PixelFeatures`."""

    @property
    def embeddings_of(self) -> str | None:
        """Fingerprint of the encoder that makes the embeddings; None if the features are not embeddings."""
        ...

    def fill(self, images: Sequence[Image], prompts: Sequence[str]) -> FillReport:
        """Compute missing features of N images and their prompts."""
        ...

    def images(self, images: Sequence[Image], prompts: Sequence[str] = ()) -> FeatureTable:
        """Features of N images, in order; an encoder may read each together with its prompt."""
        ...

    def prompts(self, prompts: Sequence[str]) -> FeatureTable:
        """Features of N texts, in order."""
        ...


@dataclass
class RewardBatch:
    """n images with c comparisons among them.

    Attributes:
        images: (n, D) float32 embeddings; pixels (n, 3, S, S) in [0, 1] if the encoder is tuned.
        prompts: (n, D) float32 embeddings, or token ids (n, L); row i belongs to image i.
        better: (c,) int64, indices into the n images.
        worse: (c,) int64.
        prompt_index: (c,) int64, each comparison's ranking, as an index into the split.
        image_index: (n,) int64, indices of the images in the split.
        total_comparisons: Comparisons of the whole batch over all processes, or the sum of their weights. The mean
            loss of the whole batch is the sum of the processes' losses divided by this number. Shares may differ in
            size, and a share is empty if the batch has fewer rankings than processes.
        shares: (c,) float32, share of the votes for the better image; None if all are 1.
        weights: (c,) float32, number of votes; None if all are 1.
    """

    images: Tensor
    prompts: Tensor
    better: Tensor
    worse: Tensor
    prompt_index: Tensor
    image_index: Tensor
    total_comparisons: float
    shares: Tensor | None = None
    weights: Tensor | None = None

    def to(self, device: torch.device | str) -> Self:
        """Move the batch to a device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True)
class EncodedRankings:
    """One split: P rankings with N images and C comparisons. A ranking's images and comparisons are consecutive.

    Attributes:
        images: Model inputs of the N images.
        prompts: Model inputs of the P prompts.
        prompt_ids: P ids.
        ranks: (N,) int64, 1 is best.
        better: (C,) int64, index of the better image in the split.
        worse: (C,) int64.
        prompt_of_image: (N,) int64, from 0 to P - 1.
        prompt_of_comparison: (C,) int64.
        shares: (C,) float32, share of the votes for the better image; None if all are 1.
        weights: (C,) float32, number of votes; None if all are 1.
    """

    images: FeatureTable
    prompts: FeatureTable
    prompt_ids: tuple[str, ...]
    ranks: Tensor
    better: Tensor
    worse: Tensor
    prompt_of_image: Tensor
    prompt_of_comparison: Tensor
    shares: Tensor | None = None
    weights: Tensor | None = None

    @classmethod
    def build(cls, rankings: Sequence[RankedPrompt], feed: FeatureSource) -> Self:
        """Index rankings and the votes in them. The feed must hold their images and prompts.

        Raises:
            ValueError: Some are not in the embedding cache.
        """
        images: list[Image] = [image for ranking in rankings for image in ranking.images]
        judgements = [ranking.judgements() for ranking in rankings]
        index = ComparisonIndex.build(rankings, [[(j.better, j.worse) for j in some] for some in judgements])
        shares = torch.tensor([j.share for some in judgements for j in some], dtype=torch.float32)
        weights = torch.tensor([j.weight for some in judgements for j in some], dtype=torch.float32)
        return cls(
            images=feed.images(images, [ranking.prompt for ranking in rankings for _ in ranking.images]),
            prompts=feed.prompts([ranking.prompt for ranking in rankings]),
            prompt_ids=tuple(ranking.prompt_id for ranking in rankings),
            ranks=torch.from_numpy(index.ranks),
            better=torch.from_numpy(index.better),
            worse=torch.from_numpy(index.worse),
            prompt_of_image=torch.from_numpy(index.prompt_of_image),
            prompt_of_comparison=torch.from_numpy(index.prompt_of_comparison),
            shares=None if bool((shares == 1).all()) else shares,
            weights=None if bool((weights == 1).all()) else weights,
        )

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def decided(self) -> bool:
        """Whether any comparison has a better image."""
        return len(self.better) > 0 and (self.shares is None or bool((self.shares != 0.5).any()))

    @cached_property
    def images_per_prompt(self) -> Index:
        """(P,), number of images per ranking."""
        return np.bincount(self.prompt_of_image.numpy(), minlength=len(self)).astype(np.int64)

    @cached_property
    def comparisons_per_prompt(self) -> Index:
        """(P,), number of comparisons per ranking; 0 if all are ties."""
        return np.bincount(self.prompt_of_comparison.numpy(), minlength=len(self)).astype(np.int64)

    def weight_of_prompts(self, prompts: Index) -> float:
        """Number of comparisons of some rankings, or the sum of their weights."""
        if self.weights is None:
            return int(self.comparisons_per_prompt[prompts].sum())
        return self.weight_of_comparisons(
            _ranges(self._first_comparison[prompts], self.comparisons_per_prompt[prompts])
        )

    def weight_of_comparisons(self, comparisons: Index) -> float:
        """Number of some comparisons, or the sum of their weights."""
        return len(comparisons) if self.weights is None else self.weights[comparisons].sum().item()

    def batch_of_prompts(self, prompts: Index, total_comparisons: float | None = None) -> RewardBatch:
        """All images and comparisons of the given rankings; each image appears once.

        Args:
            prompts: (p,), indices of distinct rankings.
            total_comparisons: Comparisons of the whole batch over all processes, or the sum of their weights; by
                default of this batch.
        """
        counts = self.images_per_prompt[prompts]
        images = _ranges(self._first_image[prompts], counts)
        pair_counts = self.comparisons_per_prompt[prompts]
        comparisons = _ranges(self._first_comparison[prompts], pair_counts)
        # From the index in the split to the index in the batch: one offset per ranking.
        shift = torch.from_numpy(np.repeat(np.cumsum(counts) - counts - self._first_image[prompts], pair_counts))
        better, worse = self.better[comparisons] + shift, self.worse[comparisons] + shift
        return self._batch(images, better, worse, comparisons, total_comparisons)

    def batch_of_comparisons(self, comparisons: Index, total_comparisons: float | None = None) -> RewardBatch:
        """Both images of the given comparisons; an image appears once per comparison.

        Args:
            comparisons: (c,), indices of comparisons.
            total_comparisons: Comparisons of the whole batch over all processes, or the sum of their weights; by
                default of this batch.
        """
        images = torch.cat([self.better[comparisons], self.worse[comparisons]]).numpy()
        better, worse = torch.arange(2 * len(comparisons)).chunk(2) if len(comparisons) else (torch.arange(0),) * 2
        return self._batch(images, better, worse, comparisons, total_comparisons)

    def _batch(
        self, images: Index, better: Tensor, worse: Tensor, comparisons: Index, total_comparisons: float | None
    ) -> RewardBatch:
        return RewardBatch(
            images=self.images.gather(images),
            prompts=self.prompts.gather(self.prompt_of_image.numpy()[images]),
            better=better,
            worse=worse,
            prompt_index=self.prompt_of_comparison[comparisons],
            image_index=torch.from_numpy(images),
            total_comparisons=(
                self.weight_of_comparisons(comparisons) if total_comparisons is None else total_comparisons
            ),
            shares=None if self.shares is None else self.shares[comparisons],
            weights=None if self.weights is None else self.weights[comparisons],
        )

    @cached_property
    def _first_image(self) -> Index:
        return np.cumsum(self.images_per_prompt) - self.images_per_prompt

    @cached_property
    def _first_comparison(self) -> Index:
        return np.cumsum(self.comparisons_per_prompt) - self.comparisons_per_prompt


class RewardBatches:
    """Batches of a split in a fixed order, a sized iterable that Lightning accepts as a loader."""

    def __init__(self, count: int, batch: Callable[[int], RewardBatch]) -> None:
        """Take the number of batches and a function from position to batch."""
        self._count = count
        self._batch = batch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[RewardBatch]:
        return map(self._batch, range(self._count))


def _ranges(starts: Index, lengths: Index) -> Index:
    """Concatenate `range(start, start + length)` for all pairs."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    steps: Index = np.repeat(starts - (ends - lengths), lengths)
    return steps + np.arange(total)
