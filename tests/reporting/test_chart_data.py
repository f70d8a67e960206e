"""What the page's charts show, ready for JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from t2ifb.reporting import chart_data as module
from t2ifb.reporting.chart_data import chart_data, intervals, metrics, ordered, run_summary
from t2ifb.reporting.comparison import Comparison
from t2ifb.reporting.runs import read_run
from t2ifb.reporting.thumbnails import Gallery, make_gallery
from tests.reporting.parts import PROMPTS, write_evaluations, write_reward_run, write_tuning_run
from tests.reporting.test_page import data_of, page_of


def test_the_kept_step_is_among_the_thinned_ones(tmp_path: Path) -> None:
    run = write_tuning_run(tmp_path / "run", steps=range(250))
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"best_step": 102}))
    (data,) = data_of(page_of(run))["runs"]
    assert 102 in data["val"]["step"] and len(data["val"]["step"]) == 200


def data(*folders: Path) -> dict[str, Any]:
    runs = [read_run(folder) for folder in folders]
    comparison = Comparison(runs)
    kept = {number: run.kept for number, run in enumerate(runs)}
    gallery = make_gallery({number: run.samples for number, run in enumerate(runs)}, kept, 1_000_000)
    found = chart_data(comparison, gallery)
    return json.loads(json.dumps(found, allow_nan=False))  # as the page embeds it


def test_metrics_are_in_the_order_of_a_reader() -> None:
    names = {"kl", "zebra", "gold/alignment", "gold", "reward", "diversity", "judges", "accuracy", "aesthetic_score"}
    assert ordered(names) == [
        "reward", "judges", "gold", "gold/alignment", "accuracy", "aesthetic_score", "zebra", "kl", "diversity",
    ]  # fmt: skip


def test_every_measured_metric_is_offered_once_for_each_kind(tmp_path: Path) -> None:
    runs = [read_run(write_tuning_run(tmp_path / "a")), read_run(write_reward_run(tmp_path / "b"))]
    found = metrics(Comparison(runs))
    keys = [each["key"] for each in found]
    assert len(keys) == len(set(keys))
    assert {"tuning:val/kl", "tuning:train/loss", "reward:val/accuracy", "reward:train/loss"} <= set(keys)
    assert {each["of"] for each in found} == {"validation", "training"}
    assert [each["key"] for each in found if each["split"] == "val" and each["kind"] == "reward"] == [
        "reward:val/accuracy", "reward:val/loss",
    ]  # fmt: skip


def test_runs_refer_to_values_of_settings_by_their_numbers(tmp_path: Path) -> None:
    betas = (0.5, 0.1, 0.5)
    found = data(*(write_tuning_run(tmp_path / str(n), beta=beta, seed=n) for n, beta in enumerate(betas)))
    settings = {setting["key"]: setting for setting in found["settings"]}
    beta = settings["algorithm.beta"]
    assert (beta["label"], beta["numeric"]) == ("beta", True)
    assert beta["values"] == [{"value": 0.1, "text": "0.1"}, {"value": 0.5, "text": "0.5"}]
    assert [run["settings"]["algorithm.beta"] for run in found["runs"]] == [1, 0, 1]
    for run, value in zip(found["runs"], betas, strict=True):
        assert beta["values"][run["settings"]["algorithm.beta"]]["value"] == value


def test_a_missing_value_comes_before_numbers_and_those_before_words(tmp_path: Path) -> None:
    runs = [read_run(write_tuning_run(tmp_path / str(n))) for n in range(4)]
    for run, value in zip(runs, (7, "word", None, 3.0), strict=True):
        run.settings["size"] = value
    found = chart_data(Comparison(runs), Gallery())
    (size,) = found["settings"]
    assert [each["text"] for each in size["values"]] == ["–", "word", "3", "7"]
    assert size["numeric"] is False


def test_each_run_says_who_judged_it(tmp_path: Path) -> None:
    folders = [write_tuning_run(tmp_path / str(n)) for n in range(4)]
    weights = ({"a": 0.5, "b": 0.5}, {"b": 1, "a": 1}, {"reward": 1.0})
    for folder, each in zip(folders, weights, strict=False):
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps(summary | {"judge_weights": each}))
    assert [run["judged_by"] for run in data(*folders)["runs"]] == ["a 50%, b 50%"] * 2 + ["", ""]


def test_judges_are_neither_the_reward_nor_a_distance(tmp_path: Path) -> None:
    found = data(write_tuning_run(tmp_path / "a"), write_reward_run(tmp_path / "b"))
    assert found["judges"] == ["judges", "gold", "clip_score"]


def test_samples_refer_to_prompts_scorers_and_images_by_their_numbers(tmp_path: Path) -> None:
    other = ("two yellow stars", "something else")
    found = data(write_tuning_run(tmp_path / "a"), write_tuning_run(tmp_path / "b", prompts=other, seed=9, base=5))
    assert found["prompts"] == [*PROMPTS, "something else"]
    assert found["scorers"] == ["reward", "gold", "clip_score", "kl", "kl_without_last_two"]
    first, second = ([samples for samples in run["samples"]] for run in found["runs"])
    assert [samples["step"] for samples in first] == [0, 10, 20, 30]
    assert first[0]["prompts"] == [0, 1, 2] and second[0]["prompts"] == [2, 3]
    assert first[1]["scores"][1] == [0.1, 0.7, 0.6, 10, 2.5]
    assert all(samples["image"] < len(found["images"]) for samples in [*first, *second])


def test_panels_have_a_line_for_each_model_or_scorer(tmp_path: Path) -> None:
    folder = write_evaluations(tmp_path)
    runs = [read_run(folder / "figure8"), read_run(folder / "table1"), read_run(write_tuning_run(tmp_path / "a"))]
    found = intervals(Comparison(runs))
    assert found.keys() == {"0", "1"}
    gold, reward = found["0"]
    assert (gold["title"], gold["reference"]) == ("gold", 0)
    assert [line["label"] for line in gold["lines"]] == ["A", "B"]
    assert gold["lines"][0] == {"label": "A", "mean": 0.1, "low": 0.05, "high": 0.15, "trained_on": False}
    assert reward["lines"][1]["trained_on"] is True
    (accuracy,) = found["1"]
    assert accuracy["reference"] == 50 and [line["mean"] for line in accuracy["lines"]] == [67]


def test_the_overview_has_changes_from_the_base_model(tmp_path: Path) -> None:
    run = read_run(write_tuning_run(tmp_path / "a", beta=0.5))
    assert run_summary(run) == pytest.approx(
        {"kept": 10, "reward": 0.1, "judges": 0.7, "gold": -0.005, "kl": 10, "kl_without_last_two": 2.5}
    )
    empty = run_summary(read_run(write_reward_run(tmp_path / "b")))
    assert empty == {"kept": 8} | dict.fromkeys(("reward", "judges", "gold", "kl", "kl_without_last_two"))


def test_many_values_are_thinned_and_each_run_keeps_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_tuning_run(tmp_path / "a", steps=range(0, 400, 2))
    assert len(data(run)["runs"][0]["train"]["step"]) == 199
    monkeypatch.setattr(module, "NUMBERS", 10)
    train = data(run)["runs"][0]["train"]["step"]
    assert len(train) == module.FEWEST and (train[0], train[-1]) == (3, 399)
