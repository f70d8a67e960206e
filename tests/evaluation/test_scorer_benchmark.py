"""Table 1 from rankings to files, on a small world with a reward model that was trained there."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from t2ifb.data.datasets.ranking_files import RankingFiles
from t2ifb.data.images import load_image
from t2ifb.evaluation import score_cache
from t2ifb.evaluation.scorer_benchmark import ScorerBenchmark
from t2ifb.scorers.clip import CLIPSource
from t2ifb.scorers.clip_score import CLIPScore
from t2ifb.scorers.reward_model import RewardModel
from tests.data.parts import RANKS, make_split
from tests.evaluation.parts import Brightness, refuses, weights
from tests.training.worlds import make_training, run_training


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("world")
    return folder, run_training(make_training(folder, epochs=2), folder / "run")


def table(folder: Path, cache: Path, **changes: Any) -> ScorerBenchmark:
    scorers = {
        "clip_score": partial(CLIPScore.from_pretrained, source=CLIPSource(f"local-dir:{folder / 'clip'}")),
        "gold": partial(Brightness, weights=weights(folder / "gold.json")),
        "reward_model": partial(RewardModel.from_pretrained, source=str(folder / "run")),
    }
    settings = {"dataset": make_training(folder).data(feed=None).dataset, "scorers": scorers, "cache_folder": cache}
    return ScorerBenchmark(**(settings | {"device": "cpu", "ceiling": "gold"} | changes))


def test_it_writes_what_it_promises(world: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = world
    summary = table(folder, tmp_path / "scores", published={"CLIP Score": 54.82, "BLIP Score": 57.76}).run(tmp_path)
    for name in (
        "table1.md",
        "table1.csv",
        "table1.json",
        "table1.tex",
        "table1.png",
        "agreement.png",
        "agreement.csv",
    ):
        assert (tmp_path / name).stat().st_size > 0, name
    rows = json.loads((tmp_path / "table1.json").read_text())
    assert [row["name"] for row in rows] == ["random", "CLIP Score", "reward model", "annotator ceiling", "BLIP Score"]
    assert [row["published"] for row in rows] == [None, 54.82, None, None, 57.76]
    assert all(row["images_per_second"] > 0 for row in rows[1:4])
    assert summary["table"]["annotator ceiling"] == summary["kendall_tau"]["annotator ceiling"] == 1
    assert summary["scorers"]["reward_model"]["arguments"]["source"]["files"].keys() == {
        "config.json",
        "reward.safetensors",
    }
    assert (summary["prompts"], summary["images"], summary["comparisons"]) == (24, 96, 144)


def test_it_says_the_same_as_the_reward_run(world: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, run = world
    summary = table(folder, tmp_path / "scores").run(tmp_path)
    assert summary["table"]["random"] == run["test/table"]["random"]
    assert summary["table"]["CLIP Score"] == pytest.approx(run["test/table"]["CLIP Score"], abs=0.01)
    assert summary["table"]["reward model"] == pytest.approx(run["test/table"]["this model"], abs=0.01)
    assert summary["data"] == run["data"]["splits"]["test"]


def test_a_second_run_builds_nothing_and_says_the_same(
    world: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = world
    first = table(folder, tmp_path / "scores").run(tmp_path / "one")
    monkeypatch.setattr(score_cache, "build", refuses)
    monkeypatch.setattr(score_cache, "load_image", refuses)
    monkeypatch.setattr(score_cache, "pixel_batches", refuses)
    again = table(folder, tmp_path / "scores").run(tmp_path / "two")
    assert {**again, "wall_seconds": 0} == {**first, "wall_seconds": 0}
    for name in ("table1.md", "table1.json", "table1.csv", "table1.tex", "agreement.csv"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_the_ceiling_may_be_absent_and_names_may_repeat(world: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = world
    clip = partial(CLIPScore.from_pretrained, source=CLIPSource(f"local-dir:{folder / 'clip'}"))
    summary = table(folder, tmp_path / "scores", scorers={"one": clip, "two": clip}).run(tmp_path)
    assert list(summary["table"]) == ["random", "CLIP Score", "two"]
    assert summary["table"]["two"] == summary["table"]["CLIP Score"]


def test_any_layout_of_rankings_and_any_split_will_do(tmp_path: Path) -> None:
    rankings = make_split(tmp_path, "mine", RANKS)
    entries = [
        {"id": r.prompt_id, "prompt": r.prompt, "generations": [p.name for p in r.images], "ranking": list(r.ranks)}
        for r in rankings
    ]
    (tmp_path / "mine.json").write_text(json.dumps(entries))
    dataset = RankingFiles({"mine": tmp_path / "mine.json"})
    scorers = {"bright": partial(Brightness, weights=weights(tmp_path / "w.json"))}
    judged = ScorerBenchmark(dataset, scorers, tmp_path / "scores", split="mine", device="cpu")
    assert judged.splits == ("mine",)
    summary = judged.run(tmp_path / "out")
    right = [
        bool(load_image(r.images[i]).mean() > load_image(r.images[j]).mean())
        for r in rankings
        for i, j in r.comparisons()
    ]
    assert summary["table"]["Brightness"] == pytest.approx(np.mean(right))


def test_no_scorers_or_no_rankings(world: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = world
    with pytest.raises(ValueError, match="scorers={}: expected at least one scorer"):
        table(folder, tmp_path, scorers={})
    (tmp_path / "empty.json").write_text("[]")
    empty = RankingFiles({"test": tmp_path / "empty.json"})
    with pytest.raises(ValueError, match="'test' has no usable rankings"):
        table(folder, tmp_path, dataset=empty).run(tmp_path)


def test_it_leaves_the_random_numbers_of_others_alone(world: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = world
    table(folder, tmp_path / "scores").run(tmp_path)
    state = torch.get_rng_state()
    table(folder, tmp_path / "scores").run(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
