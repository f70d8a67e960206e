import json
from collections import Counter
from dataclasses import replace
from math import ceil, floor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2ifb.data.datamodules import Grouping, RewardDataModule
from t2ifb.data.datasets.imagereward_db import ImageRewardDB
from t2ifb.data.datasets.mixture import Mixture
from t2ifb.data.datasets.own_rankings import OwnRankings
from t2ifb.data.datasets.ranking_files import RankingFiles
from t2ifb.data.embeddings import EmbeddingCache
from tests.data.parts import RANKS, FolderDataset, PooledPixelsSource, make_split, two_steps
from tests.training.worlds import brightness_world

WEIGHTS = {"one": 2.5, "other": 0.3}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FolderDataset]:
    """Two data sets whose rankings have the same ids."""
    folder = tmp_path_factory.mktemp("sets")
    return {
        name: FolderDataset(
            {
                "train": make_split(folder / name, "train", RANKS * times),
                "validation": make_split(folder / name, "validation", RANKS[:2]),
                "test": make_split(folder / name, "test", RANKS[2:4]),
            }
        )
        for name, times in (("one", 1), ("other", 3))
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingCache:
    return EmbeddingCache(tmp_path_factory.mktemp("cache"), PooledPixelsSource())


def drawn(module: RewardDataModule, epoch: int) -> Counter[tuple[int, int]]:
    """How often each pair (better, worse), by their numbers in the split, comes in an epoch."""
    counts: Counter[tuple[int, int]] = Counter()
    for step in range(module.steps_per_epoch):
        batch = module.train_batch(epoch * module.steps_per_epoch + step)
        better, worse = (batch.image_index[side].tolist() for side in (batch.better, batch.worse))
        counts.update(zip(better, worse, strict=True))
        assert batch.total_comparisons == len(batch.better) > 0
    return counts


def test_ids_cannot_collide_and_each_ranking_is_listed_once(sets: dict[str, FolderDataset]) -> None:
    rankings = Mixture(sets, WEIGHTS).rankings("train")
    assert len(rankings) == len({r.prompt_id for r in rankings}) == len(RANKS) * 4
    assert (rankings[0].prompt_id, rankings[-1].prompt_id) == ("one/train-0", f"other/train-{3 * len(RANKS) - 1}")
    assert [r.images for r in rankings] == [r.images for each in sets.values() for r in each.rankings("train")]


@settings(max_examples=40)
@given(
    weights=st.tuples(st.floats(0.01, 4), st.floats(0.01, 4)),
    batch_size=st.integers(1, 200),
    seed=st.integers(0, 100),
    epochs=st.integers(1, 6),
)
@pytest.mark.parametrize("grouping", ["prompt", "comparison"])
def test_weights_are_exact(
    sets: dict[str, FolderDataset],
    cache: EmbeddingCache,
    grouping: Grouping,
    weights: tuple[float, float],
    batch_size: int,
    seed: int,
    epochs: int,
) -> None:
    module = RewardDataModule(
        Mixture(sets, dict(zip(sets, weights, strict=True))), cache, grouping, batch_size=batch_size, seed=seed
    )
    encoded = module.encoded("train")
    pairs = list(zip(encoded.better.tolist(), encoded.worse.tolist(), strict=True))
    of_pair = dict(zip(pairs, encoded.prompt_of_comparison.tolist(), strict=True))
    counts = [drawn(module, epoch) for epoch in range(epochs)]
    assert all(set(count) <= set(of_pair) for count in counts)
    first = len(sets["one"].rankings("train"))
    for weight, prompts in zip(weights, (range(first), range(first, len(encoded))), strict=True):
        mine = [pair for pair in pairs if of_pair[pair] in prompts]
        units = {of_pair[pair]: pair for pair in mine}.values() if grouping == "prompt" else mine
        draws = max(1, round(weight * len(units)))
        for count in counts:  # every epoch holds exactly so many
            assert sum(count[pair] for pair in units) == draws
        rate = epochs * draws / len(units)
        for pair in units:  # and over epochs, each comes as often as any other
            assert floor(rate) <= sum(count[pair] for count in counts) <= ceil(rate)
        if grouping == "prompt":  # a ranking comes with all its comparisons
            standing = {of_pair[pair]: pair for pair in mine}
            assert all(count[pair] == count[standing[of_pair[pair]]] for count in counts for pair in mine)


@settings(max_examples=25)
@given(before=st.lists(st.integers(0, 500), max_size=10), seed=st.integers(0, 9))
def test_a_batch_depends_on_seed_and_position_alone(
    sets: dict[str, FolderDataset], cache: EmbeddingCache, before: list[int], seed: int
) -> None:
    module, fresh = (RewardDataModule(Mixture(sets, WEIGHTS), cache, batch_size=30, seed=seed) for _ in range(2))
    for position in before:
        module.train_batch(position)
    np.testing.assert_array_equal(module.train_batch(77).image_index, fresh.train_batch(77).image_index)


def test_other_seeds_and_epochs_draw_others(sets: dict[str, FolderDataset], cache: EmbeddingCache) -> None:
    one, other = (RewardDataModule(Mixture(sets, WEIGHTS), cache, seed=seed) for seed in (0, 1))
    assert drawn(one, 0) != drawn(one, 1)
    assert drawn(one, 0) != drawn(other, 0)


@pytest.mark.parametrize("grouping", ["prompt", "comparison"])
def test_weight_one_is_once_an_epoch(sets: dict[str, FolderDataset], cache: EmbeddingCache, grouping: Grouping) -> None:
    alone = RewardDataModule(sets["other"], cache, grouping, batch_size=30)
    mixed = RewardDataModule(Mixture({"it": sets["other"]}), cache, grouping, batch_size=30)
    assert mixed.steps_per_epoch == alone.steps_per_epoch
    assert drawn(mixed, 2) == drawn(alone, 2) == Counter(drawn(alone, 0).keys())


def test_a_run_cannot_go_on_with_other_weights(sets: dict[str, FolderDataset], cache: EmbeddingCache) -> None:
    module = RewardDataModule(Mixture(sets, WEIGHTS), cache, batch_size=10_000)
    state = module.state_dict()
    module.load_state_dict(state)
    module.train_dataloader()
    changed = RewardDataModule(Mixture(sets, WEIGHTS | {"other": 0.4}), cache, batch_size=10_000)
    changed.load_state_dict(state)
    with pytest.raises(ValueError, match="Cannot resume: draws was"):
        changed.train_dataloader()


def test_evaluation_is_on_all_or_on_some(sets: dict[str, FolderDataset]) -> None:
    assert len(Mixture(sets, WEIGHTS).rankings("test")) == 4
    some = Mixture(sets, {"other": 0}, evaluated=["other"])
    assert {r.prompt_id.split("/")[0] for r in some.rankings("test")} == {"other"}
    assert {r.prompt_id.split("/")[0] for r in some.rankings("train")} == {"one"}
    assert some.multiplicities("train") == [(len(RANKS), 1.0)]


def test_prompts_that_are_evaluated_on_are_not_trained_on(
    sets: dict[str, FolderDataset], caplog: pytest.LogCaptureFixture
) -> None:
    train = [replace(r, prompt=r.prompt.title()) for r in sets["one"].rankings("train")]
    test = sets["one"].rankings("test")
    leaked = replace(train[0], prompt=f" {train[3].prompt.upper()}  ")
    other = FolderDataset({"test": [leaked], "validation": [replace(test[0], prompt=train[4].prompt)]})
    mixture = Mixture({"one": FolderDataset({"train": train}), "other": other}, {"other": 0}, evaluated=["other"])
    assert mixture.multiplicities("train") == [(6, 1.0)]  # also before the rankings were asked for
    assert [r.prompt_id for r in mixture.rankings("train")] == [f"one/train-{n}" for n in (0, 1, 2, 5, 6, 7)]
    assert "one: dropped 2 of 8 training rankings" in caplog.text


def test_what_a_set_lacks_is_told_and_downloaded(sets: dict[str, FolderDataset], tmp_path: Path) -> None:
    class Downloads(FolderDataset):
        def download(self, splits: list[str]) -> None:
            self.splits |= {split: sets["one"].rankings(split) for split in splits}

    mixture = Mixture(
        {"here": sets["one"], "there": Downloads({}), "own": OwnRankings(tmp_path)}, {"own": 0}, ["there"]
    )
    assert not mixture.available("train")
    assert f"own: Expected a table {tmp_path}" in mixture.missing_message
    mixture.download(["train", "test"])
    assert mixture.available("train")
    assert mixture.available("test")
    assert not Mixture({"there": Downloads({}), "own": OwnRankings(tmp_path)}).available("test")


def test_errors_of_all_sets_are_counted(tmp_path: Path) -> None:
    entry = {"id": 1, "prompt": "x", "generations": ["n.png", "m.png"], "ranking": [1, 2]}
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps([entry]))
    files = {name: RankingFiles({"test": tmp_path / f"{name}.json"}, on_error="skip") for name in ("a", "b")}
    mixture = Mixture(files)
    assert mixture.rankings("test") == []
    assert len(mixture.errors["test"]) == 4


@pytest.mark.parametrize(
    ("weights", "evaluated", "what"),
    [
        ({"none": 1}, None, "the mixture has no data set 'none'; its data sets are one, other"),
        ({}, ["none"], "no data set 'none'"),
        ({"one": -1}, None, "must be at least 0"),
        ({"one": 0, "other": 0}, None, "not all 0"),
        ({}, [], "must name at least one data set"),
    ],
)
def test_wrong_arguments_are_refused(
    sets: dict[str, FolderDataset], weights: dict[str, float], evaluated: list[str] | None, what: str
) -> None:
    with pytest.raises(ValueError, match=what):
        Mixture(sets, weights, evaluated)
    with pytest.raises(ValueError, match="needs at least one data set; give datasets=…"):
        Mixture({})


def test_a_reward_model_trains_on_it(sets: dict[str, FolderDataset], tmp_path: Path) -> None:
    world: ImageRewardDB = brightness_world(tmp_path / "world", prompts=4)
    summary = two_steps(Mixture({"world": world, "one": sets["one"]}, {"one": 0.5}, evaluated=["world"]), tmp_path)
    assert summary["data"]["position"] == 2
    assert summary["data"]["draws"] == [(4, 4), (7, 4)]  # one of RANKS is all ties and gives no comparison
    assert summary["test/comparisons"] == 4 * 6
