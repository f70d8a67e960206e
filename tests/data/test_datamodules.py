from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import lightning
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn.functional import logsigmoid

from t2ifb.data.datamodules import Grouping, RewardBatch, RewardDataModule
from t2ifb.data.embeddings import EmbeddingCache
from tests.data.parts import RANKS, FolderDataset, PooledPixels, PooledPixelsSource

GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingCache:
    return EmbeddingCache(tmp_path_factory.mktemp("cache"), PooledPixelsSource())


@pytest.fixture
def module(dataset: FolderDataset, cache: EmbeddingCache) -> RewardDataModule:
    return RewardDataModule(dataset, cache, batch_size=20)


def pairs(batch: RewardBatch) -> list[tuple[int, int, int]]:
    """Ranking, better and worse image, as their numbers in the split."""
    columns = batch.prompt_index, batch.image_index[batch.better], batch.image_index[batch.worse]
    return list(zip(*(column.tolist() for column in columns), strict=True))


def all_pairs(module: RewardDataModule) -> list[tuple[int, int, int]]:
    encoded = module.encoded("train")
    columns = encoded.prompt_of_comparison, encoded.better, encoded.worse
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


@settings(deadline=None, max_examples=25)
@given(batch_size=st.integers(1, 200), seed=st.integers(0, 100), epoch=st.integers(0, 3))
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_each_comparison_comes_once_an_epoch(
    dataset: FolderDataset, cache: EmbeddingCache, grouping: Grouping, batch_size: int, seed: int, epoch: int
) -> None:
    module = RewardDataModule(dataset, cache, grouping, batch_size, seed)
    start = epoch * module.steps_per_epoch
    batches = [module.train_batch(start + step) for step in range(module.steps_per_epoch)]
    assert sorted(pair for batch in batches for pair in pairs(batch)) == all_pairs(module)
    assert all(batch.total_comparisons == len(batch.better) > 0 for batch in batches)


def test_a_prompt_batch_holds_whole_rankings_and_each_image_once(module: RewardDataModule) -> None:
    encoded = module.encoded("train")
    for step in range(module.steps_per_epoch):
        batch = module.train_batch(step)
        assert len(set(batch.image_index.tolist())) == len(batch.image_index)
        for prompt, count in Counter(batch.prompt_index.tolist()).items():
            assert count == encoded.comparisons_per_prompt[prompt]
            images = (encoded.prompt_of_image[batch.image_index] == prompt).sum()
            assert images == encoded.images_per_prompt[prompt]


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_rows_are_the_embeddings_of_image_and_prompt(
    dataset: FolderDataset, cache: EmbeddingCache, grouping: Grouping
) -> None:
    module = RewardDataModule(dataset, cache, grouping, batch_size=20)
    images = [image for r in dataset.rankings("train") for image in r.images]
    prompts = [r.prompt for r in dataset.rankings("train") for _ in r.images]
    batch = module.train_batch(1)
    assert torch.equal(batch.images, cache.images(images).gather(batch.image_index.numpy()))
    expected = PooledPixels(0).encode_prompts([prompts[i] for i in batch.image_index.tolist()])
    torch.testing.assert_close(batch.prompts, expected)


def as_process(module: RewardDataModule, rank: int, world_size: int) -> RewardDataModule:
    loop = SimpleNamespace(
        epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(processed=0)))
    )
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, fit_loop=loop)  # type: ignore[assignment]
    return module


@pytest.mark.parametrize("world_size", [2, 3, 8])
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_processes_together_hold_the_batch_of_one(
    dataset: FolderDataset, cache: EmbeddingCache, grouping: Grouping, world_size: int
) -> None:
    alone = RewardDataModule(dataset, cache, grouping, batch_size=20)
    together = [
        as_process(RewardDataModule(dataset, cache, grouping, batch_size=20), rank, world_size)
        for rank in range(world_size)
    ]
    for position in range(2 * alone.steps_per_epoch):
        whole = alone.train_batch(position)
        shares = [module.train_batch(position) for module in together]
        assert sorted(pair for share in shares for pair in pairs(share)) == sorted(pairs(whole))
        assert {share.total_comparisons for share in shares} == {len(whole.better)}
    for module in together:
        assert len(module.val_dataloader()) == len(alone.val_dataloader())
    evaluated = [i for module in together for batch in module.val_dataloader() for i in batch.image_index.tolist()]
    assert sorted(evaluated) == list(range(len(alone.encoded("validation").ranks)))


def test_evaluation_is_in_order_and_whole(module: RewardDataModule) -> None:
    loader = module.val_dataloader()
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == len(loader) > 1
        images = torch.cat([batch.image_index for batch in batches])
        assert torch.equal(images, torch.arange(sum(map(len, RANKS))))
    test = module.evaluation_batches("test")
    assert sum(len(batch.better) for batch in test) == len(module.encoded("test").better)


class Trained(lightning.LightningModule):
    """A linear reward that notes which comparisons it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = torch.nn.Linear(12, 1)
        self.seen: list[list[tuple[int, int, int]]] = []

    def training_step(self, batch: RewardBatch, batch_idx: int) -> Tensor:
        self.seen.append(pairs(batch))
        rewards = self.head(torch.cat([batch.images, batch.prompts], 1)).squeeze(1)
        return -logsigmoid(rewards[batch.better] - rewards[batch.worse]).mean()

    def validation_step(self, batch: RewardBatch, batch_idx: int) -> None:
        assert len(batch.images)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def fit(folder: Path, module: RewardDataModule, steps: int, resume: Path | None = None) -> Trained:
    model = Trained()
    trainer = lightning.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        check_val_every_n_epoch=None,
        val_check_interval=2,
        num_sanity_val_steps=0,
        callbacks=[ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)],
    )
    trainer.fit(model, module, ckpt_path=resume)
    return model


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_resume_is_exact_in_the_middle_of_an_epoch(
    dataset: FolderDataset, cache: EmbeddingCache, tmp_path: Path, grouping: Grouping
) -> None:
    def module() -> RewardDataModule:
        return RewardDataModule(dataset, cache, grouping, batch_size=20, seed=3)

    assert 3 < module().steps_per_epoch < 9
    whole = fit(tmp_path / "whole", module(), steps=11)
    assert whole.seen == [pairs(module().train_batch(position)) for position in range(11)]
    for step in (1, 4, module().steps_per_epoch, 10):
        resumed = fit(tmp_path / f"resumed{step}", module(), 11, tmp_path / "whole" / f"step={step}.ckpt")
        assert resumed.seen == whole.seen[step:]
        assert torch.equal(resumed.head.weight, whole.head.weight)
    twice = fit(tmp_path / "twice", module(), 11, tmp_path / "resumed4" / "step=9.ckpt")
    assert twice.seen == whole.seen[9:]
    assert torch.equal(twice.head.weight, whole.head.weight)


def test_a_second_training_with_the_same_module_starts_anew(module: RewardDataModule, tmp_path: Path) -> None:
    first, second = fit(tmp_path / "1", module, 3), fit(tmp_path / "2", module, 3)
    assert first.seen == second.seen


def test_resuming_another_order_is_refused(dataset: FolderDataset, cache: EmbeddingCache) -> None:
    state = RewardDataModule(dataset, cache, batch_size=20).state_dict()
    other = RewardDataModule(dataset, cache, batch_size=30, seed=1)
    other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"Cannot resume: seed was 0 and is 1, batch_size was 20 and is 30"):
        other.train_dataloader()


def test_resuming_on_other_labels_or_embeddings_is_refused(
    dataset: FolderDataset, cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = RewardDataModule(dataset, cache, batch_size=20).state_dict()
    splits = {
        split: [replace(ranking, ranks=tuple(reversed(ranking.ranks))) for ranking in rankings]
        for split, rankings in dataset.splits.items()
    }
    other = RewardDataModule(FolderDataset(splits), cache, batch_size=20)
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="Cannot resume: rankings was"):
        other.train_dataloader()
    monkeypatch.setattr(EmbeddingCache, "embeddings_of", "another encoder")
    again = RewardDataModule(dataset, cache, batch_size=20)
    again.load_state_dict(state)
    with pytest.raises(ValueError, match="Cannot resume: embeddings was"):
        again.train_dataloader()


def test_a_position_without_restored_loops_counts_too(dataset: FolderDataset, cache: EmbeddingCache) -> None:
    module = RewardDataModule(dataset, cache, batch_size=20)
    module.load_state_dict(module.state_dict() | {"position": 7})
    batches = islice(module.train_dataloader(), 3)
    assert [pairs(batch) for batch in batches] == [pairs(module.train_batch(position)) for position in (7, 8, 9)]
    assert module.state_dict()["position"] == 7


def test_everything_is_encoded_before_training(dataset: FolderDataset, tmp_path: Path) -> None:
    source = PooledPixelsSource()
    module = RewardDataModule(dataset, EmbeddingCache(tmp_path, source))
    module.prepare_data()
    for split in module.splits:
        module.encoded(split)
    assert source.loads == 1


class Ties(FolderDataset):
    missing_message = "Build it."


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"grouping": "image"}, "grouping must be prompt or comparison, not 'image'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"splits": ("train",)}, "a training and a validation split"),
    ],
)
def test_wrong_arguments_are_refused(
    dataset: FolderDataset, cache: EmbeddingCache, arguments: dict[str, Any], what: str
) -> None:
    with pytest.raises(ValueError, match=what):
        RewardDataModule(dataset, cache, **arguments)


def test_missing_splits_and_all_ties_are_told(dataset: FolderDataset, cache: EmbeddingCache) -> None:
    with pytest.raises(ValueError, match=r"'validation' is missing. Build it."):
        RewardDataModule(Ties({"train": dataset.rankings("train")}), cache).prepare_data()
    ties = [ranking for ranking in dataset.rankings("train") if not ranking.comparisons()]
    with pytest.raises(ValueError, match="no comparisons to train on"):
        RewardDataModule(Ties({"train": ties}), cache).train_batch(0)
