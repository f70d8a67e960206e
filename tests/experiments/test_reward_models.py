"""The study of reward models: a valid grid, right comparisons, and the whole way on a few images."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.reward_models import study
from experiments.reward_models.comparisons import KINDS, Comparisons, by_annotators, by_gold, score
from t2ifb.config import schema
from t2ifb.config.compose import compose_all
from t2ifb.config.instantiate import check
from t2ifb.data.datasets.imagereward_db import ImageRewardDB
from t2ifb.shapes.gold import GoldScore
from tests.conftest import run_in
from tests.shapes.parts import write_database


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> ImageRewardDB:
    return ImageRewardDB(write_database(tmp_path_factory.mktemp("db")))


@pytest.mark.parametrize("variant", study.VARIANTS)
def test_every_variant_is_a_valid_run(variant: str) -> None:
    schema.register()
    (composed,) = compose_all("train", ["+experiment=reward_mlp", *study.VARIANTS[variant]])
    check(composed)


def test_variants_have_folders_of_their_own() -> None:
    assert len({study.run_of(variant, 0).path for variant in study.VARIANTS}) == len(study.VARIANTS)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_seen_by_gold_and_only_comparisons_with_damage_are_asked(database: ImageRewardDB, kind: str) -> None:
    rankings = database.rankings("test")
    made = by_gold(rankings, kind)
    gold = score(GoldScore(), made.pixels, made.prompts)
    assert made.pixels.min() >= 0
    assert made.pixels.max() <= 1
    assert (gold[made.better] > gold[made.worse]).all()
    images = len(rankings[0].images)
    is_copy = np.arange(len(gold)) % (2 * images) >= images
    assert (is_copy[made.better] | is_copy[made.worse]).all()
    assert gold[is_copy].mean() < gold[~is_copy].mean()
    assert torch.equal(made.pixels, by_gold(rankings, kind).pixels)
    assert made.judge(gold).accuracy.mean == 1
    assert made.judge(-gold).accuracy.mean == 0


def test_the_annotators_comparisons_are_those_of_the_rankings(database: ImageRewardDB) -> None:
    rankings = database.rankings("test")
    made: Comparisons = by_annotators(rankings)
    assert len(made.better) == sum(len(ranking.comparisons()) for ranking in rankings)
    gold = score(GoldScore(), made.pixels, made.prompts)
    assert made.judge(gold).accuracy.mean == 1  # the right picture is ranked first, the others are tied


@pytest.mark.slow
def test_the_study_goes_the_whole_way(
    database: ImageRewardDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [f"dataset.source={database.source}", "build=null", "algorithm.batch_size=100", "algorithm.epochs=2"]
    variants = {"mlp": few, "mlp, 1 tuned": [*few, "algorithm.train_prompts=3", "encoder.trainable_layers=1"]}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "HERE", tmp_path)
    monkeypatch.setattr(study, "VARIANTS", variants)
    monkeypatch.setenv("T2IFB_DATA", str(tmp_path / "data"))
    for variant, seed in (("mlp", 0), ("mlp", 1), ("mlp, 1 tuned", 0)):  # the study is to train the fourth
        run = study.run_of(variant, seed)
        done = run_in(tmp_path, run.module, *run.overrides, "logger=none", f"hydra.run.dir={run.path}")
        assert done.returncode == 0, done.stderr
    monkeypatch.setattr(sys, "argv", ["study", "--seeds", "0", "1"])
    study.main()
    assert "4 runs, 1 of them to train" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert list(result["variants"]) == list(variants)
    ours = result["variants"]["mlp, 1 tuned"]
    for name in ("validation", "test", "compositional", *KINDS):
        assert result["comparisons"][name] > 0
        assert len(ours[name]["accuracy"]) == len(ours[name]["difference"]) == 2
        assert ours[name]["over_seeds"]["mean"] == pytest.approx(np.mean(ours[name]["accuracy"]))
        gained = ours[name]["over_seeds"]["mean"] - result["variants"]["mlp"][name]["over_seeds"]["mean"]
        assert ours[name]["difference_over_seeds"]["mean"] == pytest.approx(gained)
        assert np.mean([one["mean"] for one in ours[name]["difference"]]) == pytest.approx(gained)
    assert (tmp_path / "result.png").stat().st_size > 10_000
    capsys.readouterr()
    study.main()
    assert "4 runs, 0 of them to train" in capsys.readouterr().out
    monkeypatch.setattr(study, "VARIANTS", {**variants, "mlp": [*few, "optimizer.lr=1e-3"]})
    with pytest.raises(SystemExit, match="settings differ from the current ones: .*/mlp/seed0"):
        study.main()
