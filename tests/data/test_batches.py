"""Comparisons as indices into images and prompts, and batches of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from t2ifb.data.batches import ComparisonIndex, RewardBatch, RewardBatches, rankings_hash
from t2ifb.data.datamodules import RewardDataModule
from t2ifb.data.embeddings import EmbeddingCache
from t2ifb.data.rankings import RankedPrompt, Votes
from tests.data.parts import FolderDataset, PooledPixelsSource, make_split
from tests.data.test_datamodules import pairs


def ranking(number: int, prompt: str, *ranks: int) -> RankedPrompt:
    return RankedPrompt(str(number), prompt, tuple(Path(f"{number}-{image}") for image in range(len(ranks))), ranks)


def test_images_and_comparisons_are_numbered_across_rankings() -> None:
    index = ComparisonIndex.build([ranking(0, "a cat", 2, 1, 2), ranking(1, "a dog", 1, 1), ranking(2, "a fox", 1, 2)])
    assert index.ranks.tolist() == [2, 1, 2, 1, 1, 1, 2]
    assert index.prompt_of_image.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert list(zip(index.better.tolist(), index.worse.tolist(), strict=True)) == [(1, 0), (1, 2), (5, 6)]
    assert index.prompt_of_comparison.tolist() == [0, 0, 2]
    assert (index.text_of_prompt.tolist(), index.texts) == ([0, 1, 2], 3)


def test_rankings_of_one_text_share_it_however_it_is_spelled() -> None:
    prompts = ("a cat", "A  Cat", "a dog", "a cat")
    index = ComparisonIndex.build([ranking(number, prompt, 1, 2) for number, prompt in enumerate(prompts)])
    assert index.text_of_prompt.tolist() == [0, 0, 1, 0]
    assert index.texts == 2
    assert index.prompt_of_image.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_no_rankings_are_an_empty_index() -> None:
    index = ComparisonIndex.build([])
    assert index.texts == 0
    assert all(len(column) == 0 and column.dtype == np.int64 for column in vars(index).values())


def test_the_hash_of_rankings_follows_ids_prompts_and_ranks_but_not_the_place_of_images() -> None:
    one = [ranking(0, "a cat", 1, 2)]
    assert rankings_hash(one) == rankings_hash([replace(one[0], images=(Path("x"), Path("y")))])
    others = [[ranking(1, "a cat", 1, 2)], [ranking(0, "a dog", 1, 2)], [ranking(0, "a cat", 2, 1)], one * 2, []]
    assert len({rankings_hash(each) for each in (one, *others)}) == 6


@pytest.fixture(scope="module")
def module(dataset: FolderDataset, tmp_path_factory: pytest.TempPathFactory) -> RewardDataModule:
    return RewardDataModule(
        dataset, EmbeddingCache(tmp_path_factory.mktemp("cache"), PooledPixelsSource()), batch_size=20
    )


def test_a_split_is_indexed_as_its_rankings_say(module: RewardDataModule, dataset: FolderDataset) -> None:
    encoded = module.encoded("train")
    rankings = dataset.rankings("train")
    assert encoded.prompt_ids == tuple(r.prompt_id for r in rankings)
    assert len(encoded.images) == sum(len(r.images) for r in rankings)
    assert len(encoded.prompts) == len(rankings)
    assert (encoded.ranks[encoded.better] < encoded.ranks[encoded.worse]).all()
    for column in (encoded.better, encoded.worse):
        assert torch.equal(encoded.prompt_of_image[column], encoded.prompt_of_comparison)
    assert encoded.comparisons_per_prompt.tolist() == [len(r.comparisons()) for r in rankings]


def test_both_groupings_give_the_same_loss_on_the_same_comparisons(module: RewardDataModule) -> None:
    encoded = module.encoded("train")
    prompts = np.array([0, 4, 9])
    comparisons = np.flatnonzero(np.isin(encoded.prompt_of_comparison.numpy(), prompts))
    head = torch.nn.Linear(12, 1)

    def loss(batch: RewardBatch) -> Tensor:
        rewards = head(torch.cat([batch.images, batch.prompts], 1)).squeeze(1)
        return -logsigmoid(rewards[batch.better] - rewards[batch.worse]).mean()

    by_prompt, singly = encoded.batch_of_prompts(prompts), encoded.batch_of_comparisons(comparisons)
    assert sorted(pairs(by_prompt)) == sorted(pairs(singly))
    torch.testing.assert_close(loss(by_prompt), loss(singly))


def test_a_batch_moves_between_devices_and_precisions(module: RewardDataModule) -> None:
    batch = module.train_batch(0)
    moved = batch.to("meta")
    assert moved.images.device.type == moved.better.device.type == "meta"
    assert replace(moved, total_comparisons=1).total_comparisons == 1
    assert batch.images.dtype == torch.float32
    assert batch.better.dtype == torch.int64


def test_a_batch_of_no_prompts_is_empty_and_keeps_the_count_of_the_whole(module: RewardDataModule) -> None:
    encoded, none = module.encoded("train"), np.empty(0, np.int64)
    for batch in (encoded.batch_of_prompts(none, 7), encoded.batch_of_comparisons(none, 7)):
        assert batch.images.shape == batch.prompts.shape == (0, 6)
        assert len(batch.better) == len(batch.worse) == len(batch.prompt_index) == 0
        assert batch.total_comparisons == 7


def test_batches_can_be_walked_again(module: RewardDataModule) -> None:
    asked: list[int] = []

    def batch(position: int) -> RewardBatch:
        asked.append(position)
        return module.train_batch(position)

    batches = RewardBatches(3, batch)
    assert len(batches) == 3
    assert [pairs(each) for each in batches] == [pairs(each) for each in batches]
    assert asked == [0, 1, 2, 0, 1, 2]


def with_votes(tmp_path: Path, *counts: tuple[float, float]) -> RewardDataModule:
    """A split of rankings of two images with votes, one ranking per pair of counts."""
    rankings = make_split(tmp_path, "train", [(1, 2) if a > b else (2, 1) if b > a else (1, 1) for a, b in counts])
    voted = [replace(r, votes=(Votes(0, 1, *pair),)) for r, pair in zip(rankings, counts, strict=True)]
    dataset = FolderDataset({"train": voted, "validation": voted})
    return RewardDataModule(dataset, EmbeddingCache(tmp_path / "cache", PooledPixelsSource()), batch_size=100)


def test_votes_become_shares_and_weights(tmp_path: Path) -> None:
    module = with_votes(tmp_path, (3, 1), (1, 4), (0.5, 0.5))
    encoded = module.encoded("train")
    assert (encoded.better.tolist(), encoded.worse.tolist()) == ([0, 3, 4], [1, 2, 5])
    assert encoded.shares is not None and encoded.weights is not None
    torch.testing.assert_close(encoded.shares, torch.tensor([0.75, 0.8, 0.5]))
    assert encoded.weights.tolist() == [4, 5, 1]
    batch = module.train_batch(0)
    assert batch.total_comparisons == 10
    assert batch.weights is not None and sorted(batch.weights.tolist()) == [1, 4, 5]
    alone = encoded.batch_of_comparisons(np.array([1]))
    assert (alone.shares.tolist(), alone.total_comparisons) == ([pytest.approx(0.8)], 5)  # type: ignore[union-attr]
    assert ComparisonIndex.build(module.rankings("train")).better.tolist() == [0, 3]  # a tie has no better image


def test_single_votes_are_comparisons_as_without_votes(tmp_path: Path) -> None:
    voted = with_votes(tmp_path, (1, 0), (0, 1)).train_batch(0)
    assert (voted.shares, voted.weights, voted.total_comparisons) == (None, None, 2)
