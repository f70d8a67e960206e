"""Preference pairs: which there are, their weights, and batches that are functions of seed and position."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from t2ifb.data.embeddings import EmbeddingCache
from t2ifb.data.pairs import PairDataModule
from t2ifb.data.rankings import RankedPrompt, Votes
from tests.data.parts import FolderDataset, PooledPixelsSource, make_split

SHAPE = (3, 2, 1)
"""Of latents with the six numbers that the tiny encoder gives."""


def module_of(rankings: list[RankedPrompt], cache: EmbeddingCache, **options: Any) -> PairDataModule:
    module = PairDataModule(rankings, cache, SHAPE, **options)
    module.prepare_data()
    return module


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path / "latents", PooledPixelsSource())


def test_a_ranking_gives_all_its_pairs_and_prompts_count_equally(tmp_path: Path, cache: EmbeddingCache) -> None:
    """Ranks 1, 2, 2, 3 give five pairs, a pair gives one, and ties give none."""
    rankings = make_split(tmp_path, "train", [(1, 2, 2, 3), (2, 1), (1, 1)])
    module = module_of(rankings, cache, batch_size=6)
    batch = module.train_batch(0)
    assert module.steps_per_epoch == 1 and batch.total == 6 and batch.pairs is not None
    assert batch.pairs.latents.shape == (6, 2, *SHAPE)
    weight = {prompt: 0.0 for prompt in batch.prompts}
    for prompt, each in zip(batch.prompts, batch.pairs.weights.tolist(), strict=True):
        weight[prompt] += each
    assert weight == pytest.approx({rankings[0].prompt: 3.0, rankings[1].prompt: 3.0})
    better, worse = (cache.images([rankings[1].images[n]]).gather()[0] for n in (1, 0))
    pair = batch.pairs.latents[batch.prompts.index(rankings[1].prompt)].flatten(1)
    assert torch.equal(pair, torch.stack([better, worse]))


def test_rankings_of_one_prompt_share_its_weight(tmp_path: Path, cache: EmbeddingCache) -> None:
    first, second, other = make_split(tmp_path, "train", [(1, 2), (1, 2), (1, 2)])
    same = RankedPrompt(second.prompt_id, first.prompt, second.images, second.ranks)
    batch = module_of([first, same, other], cache, batch_size=3).train_batch(0)
    assert batch.pairs is not None
    weights = dict(zip(batch.prompts, batch.pairs.weights.tolist(), strict=True))
    assert weights == pytest.approx({first.prompt: 0.75, other.prompt: 1.5})


def test_votes_weigh_the_pairs_of_a_prompt(tmp_path: Path, cache: EmbeddingCache) -> None:
    """Three of four votes on one pair and an even split of two on another; the other prompt has one decided pair."""
    voted, other = make_split(tmp_path, "train", [(1, 2, 3), (1, 2)])
    votes = Votes(1, 0, 1, 3), Votes(1, 2, 1, 1)
    rankings = [RankedPrompt(voted.prompt_id, voted.prompt, voted.images, voted.ranks, votes), other]
    batch = module_of(rankings, cache, batch_size=3).train_batch(0)
    assert batch.pairs is not None
    found = sorted(zip(batch.prompts, batch.pairs.weights.tolist(), batch.pairs.shares.tolist(), strict=True))
    expected = sorted([(voted.prompt, 1.0, 0.75), (voted.prompt, 0.5, 0.5), (other.prompt, 1.5, 1.0)])
    assert [row[0] for row in found] == [row[0] for row in expected]
    for row, right in zip(found, expected, strict=True):
        assert row[1:] == pytest.approx(right[1:])
    best = cache.images([voted.images[0]]).gather()[0]
    row = batch.pairs.shares.tolist().index(0.75)
    assert torch.equal(batch.pairs.latents[row, 0].flatten(), best)


def test_batches_are_a_function_of_seed_and_position_and_use_every_pair(
    dataset: FolderDataset, cache: EmbeddingCache
) -> None:
    rankings = dataset.rankings("train")
    module, again = (module_of(rankings, cache, batch_size=7, seed=1) for _ in range(2))
    count = sum(len(ranking.comparisons()) for ranking in rankings)
    batches = [module.train_batch(position) for position in range(module.steps_per_epoch)]
    assert sum(batch.total for batch in batches) == count
    latents = torch.cat([batch.pairs.latents for batch in batches if batch.pairs])
    assert len(torch.unique(latents.flatten(1), dim=0)) == count
    assert torch.equal(again.train_batch(3).pairs.latents, batches[3].pairs.latents)  # type: ignore[union-attr]
    assert module.train_batch(module.steps_per_epoch).prompts != batches[0].prompts


def test_processes_divide_a_batch(dataset: FolderDataset, cache: EmbeddingCache) -> None:
    module = module_of(dataset.rankings("train"), cache, batch_size=7)
    whole, shares = module.train_batch(2), []
    for rank in range(2):
        module.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        shares.append(module.train_batch(2))
    assert sorted(number for share in shares for number in share.numbers) == whole.numbers
    for share in shares:
        assert share.total == whole.total and share.prompts == [whole.prompts[n] for n in share.numbers]
        assert torch.equal(share.pairs.latents, whole.pairs.latents[share.numbers])  # type: ignore[union-attr]


def test_images_are_encoded_once(dataset: FolderDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = PooledPixelsSource()
    for _ in range(2):
        module_of(dataset.rankings("train"), EmbeddingCache(tmp_path, source))
    assert source.loads == 1 and capsys.readouterr().out.count("latents:") == 1


def test_blocks_of_a_mixture_come_as_often_as_they_say(tmp_path: Path, cache: EmbeddingCache) -> None:
    rankings = make_split(tmp_path, "train", [(1, 2)] * 4)
    module = module_of(rankings, cache, batch_size=7, blocks=[(1, 4.0), (3, 1.0)])
    drawn = np.concatenate([module.train_batch(n).prompts for n in range(module.steps_per_epoch)]).tolist()
    assert drawn.count(rankings[0].prompt) == 4 and len(drawn) == 7


def test_ties_alone_are_refused(tmp_path: Path, cache: EmbeddingCache) -> None:
    with pytest.raises(ValueError, match="no comparisons to train on: every ranking is empty or contains only ties"):
        PairDataModule(make_split(tmp_path, "train", [(1, 1)]), cache, SHAPE)
