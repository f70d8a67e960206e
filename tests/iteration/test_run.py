"""Rounds of real tiny runs: their order, their arguments, and a kill at any moment."""

import json
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from t2ifb.annotation.answers import Answer, AnswerLog
from t2ifb.annotation.items import read_items
from t2ifb.data.datasets.imagereward_db import ImageRewardDB
from t2ifb.finetuning.run import FineTuner
from t2ifb.iteration.collection import ANSWERS, COLLECTED, RankingsNeeded
from t2ifb.reporting.discovery import find_runs
from t2ifb.reward_learning.run import RewardTrainer
from tests.finetuning.tuning_worlds import Darkness, Redness, export_reward
from tests.iteration.parts import ON_CPU, make_iteration
from tests.shapes.parts import write_database

TUNED = {"network_evaluations": 10, "validation": {"judges": 0.5}, "kept": "tuned", "judge_weights": {"redness": 1.0}}
CLEAN = get_context("forkserver")
CLEAN.set_forkserver_preload([__name__])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": 0}, "rounds=0"),
        ({"images_per_prompt": 10}, "images_per_prompt=10 must be from 2 to 9"),
        ({"answered": 0.0}, "answered=0"),
        ({"held_out": 0.0}, "held_out=0.0 must be above 0"),
        ({"held_out": 0.5}, "below 0.5"),
        ({"prompts_per_round": 2}, "prompts_per_round=2 with held_out=0.2 leaves no prompt to train on, as 1 each"),
        ({"held_out": 0.45}, "prompts_per_round=6 with held_out=0.45 leaves no prompt"),
        ({"annotators": {}}, "at least one program"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_iteration(tmp_path / "rounds", tmp_path, **changes)


def test_both_runs_are_checked_before_anything_is_drawn(tmp_path: Path) -> None:
    good = make_iteration(tmp_path / "rounds", tmp_path)
    for name, run in (("tuner", good.tuner), ("reward_trainer", good.reward_trainer)):
        with pytest.raises(ValueError, match="epochs"):
            make_iteration(tmp_path / "rounds", tmp_path, **{name: partial(run, epochs=0)})
        with pytest.raises(ValueError, match="one process on one device"):
            make_iteration(tmp_path / "rounds", tmp_path, **{name: partial(run, trainer=partial(ON_CPU, devices=2))})
    assert not (tmp_path / "rounds").exists()


def test_a_part_of_the_rankings_is_refused(tmp_path: Path) -> None:
    trainer = partial(make_iteration(tmp_path / "rounds", tmp_path).reward_trainer, train_prompts=3)
    with pytest.raises(ValueError, match="leave train_prompts out"):
        make_iteration(tmp_path / "rounds", tmp_path, reward_trainer=trainer)


def test_the_first_round_starts_from_given_adapters(tmp_path: Path) -> None:
    tuner = partial(make_iteration(tmp_path / "rounds", tmp_path).tuner, start_from=str(tmp_path / "distilled"))
    iteration = make_iteration(tmp_path / "rounds", tmp_path, tuner=tuner)
    starts = [iteration._tuner(number, reward=torch.nn.Identity()).start_from for number in (1, 2)]
    assert starts == [iteration._start(1), iteration._start(2)]
    assert starts == [tmp_path / "distilled", tmp_path / "rounds" / "round_01" / "tuning"]


def test_the_reward_learns_old_and_new_rankings_and_tuning_continues(tmp_path: Path) -> None:
    iteration = make_iteration(tmp_path / "rounds", tmp_path)
    assert iteration.splits == []
    second = iteration._rankings(2)
    assert list(second.datasets) == list(second.evaluated) == ["round_01", "round_02"]
    initial = ImageRewardDB(tmp_path / "db")
    changes = {"dataset": initial, "dataset_weight": 0.5, "held_out": None}
    iteration = make_iteration(tmp_path / "rounds", tmp_path, **changes)
    assert iteration.splits == ["train", "validation", "test"]
    second = iteration._rankings(2)
    assert list(second.datasets) == ["initial", "round_01", "round_02"]
    assert second.weights == {"initial": 0.5, "round_01": 1.0, "round_02": 1.0}
    assert second.evaluated == ("initial",)
    first, third = (iteration._tuner(n, reward=torch.nn.Identity()) for n in (1, 3))
    assert first.start_from is None
    assert third.start_from == tmp_path / "rounds" / "round_02" / "tuning"
    assert (first.seed, third.seed) == (0, 2000)


def test_runs_record_the_settings_of_the_command_line_with_their_own_seed(tmp_path: Path) -> None:
    iteration = make_iteration(tmp_path / "rounds", tmp_path, seed=3, config={"domain": "shapes", "seed": 3})
    runs = iteration._tuner(2, reward=torch.nn.Identity()), iteration._reward_trainer(2)
    assert [run.config for run in runs] == [{"domain": "shapes", "seed": 1003}] * 2


def test_judges_count_alike_in_all_rounds(tmp_path: Path) -> None:
    judges = {"redness": Redness(), "darkness": Darkness()}
    iteration = make_iteration(tmp_path / "rounds", tmp_path)
    iteration.tuner = partial(iteration.tuner, judges=judges, reward=torch.nn.Identity())
    summary = iteration.folder(1) / "tuning" / "summary.json"
    summary.parent.mkdir(parents=True)
    for weights in ({"redness": 0.3, "darkness": 0.1}, {"reward": 1.0}):
        summary.write_text(json.dumps({"judge_weights": weights}))
        first, second = (iteration._tuner(number, reward=torch.nn.Identity()) for number in (1, 2))
        assert first.find_weights
        if "reward" in weights:
            assert second.find_weights
        else:
            assert second.judge_weights == weights and not second.find_weights


def test_an_iteration_waits_for_people_and_is_not_begun_twice(tmp_path: Path) -> None:
    changes = {"annotators": None, "prompts_per_round": 3}
    images = tmp_path / "rounds" / "round_01" / "rankings"
    for resume in (False, True):
        with pytest.raises(RankingsNeeded, match="3 of 3 prompts have no answer yet") as wanted:
            make_iteration(tmp_path / "rounds", tmp_path, resume=resume, **changes).fit()
        assert wanted.value.images == images
    with pytest.raises(ValueError, match="unfinished iteration in it; continue it with resume=True"):
        make_iteration(tmp_path / "rounds", tmp_path, **changes).fit()


def test_finished_steps_are_skipped_and_an_unfinished_one_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training is replaced by its results; everything else is real."""
    calls: list[str] = []

    def finish(run: RewardTrainer | FineTuner, name: str, figures: dict[str, Any]) -> dict[str, Any]:
        calls.append(name)
        assert run.resume
        if calls == ["reward", "tuning"]:
            raise KeyboardInterrupt
        (run.output_dir / "metrics.csv").write_text("step,val/judges\n0,0.0\n1,0.5\n")
        (run.output_dir / "summary.json").write_text(json.dumps(figures))
        return figures

    def train(run: RewardTrainer) -> dict[str, Any]:
        export_reward(run.output_dir)
        return finish(run, "reward", {"validation": {"accuracy": 0.75}})

    def tune(run: FineTuner) -> dict[str, Any]:
        (run.output_dir / "export").mkdir(parents=True, exist_ok=True)
        (run.output_dir / "export" / "pytorch_lora_weights.safetensors").write_bytes(b"adapters")
        return finish(run, "tuning", TUNED)

    monkeypatch.setattr(RewardTrainer, "fit", train)
    monkeypatch.setattr(FineTuner, "fit", tune)
    with pytest.raises(KeyboardInterrupt):
        make_iteration(tmp_path / "rounds", tmp_path, rounds=1).fit()
    summary = make_iteration(tmp_path / "rounds", tmp_path, rounds=1, resume=True).fit()
    assert calls == ["reward", "tuning", "tuning"]
    assert summary["rounds"] == json.loads((tmp_path / "rounds" / "rounds.json").read_text())
    assert summary["rounds"][0]["reward_accuracy"] == 0.75
    assert summary["rounds"][0]["base_validation"] == {"judges": 0.0}
    assert summary["network_evaluations"] == 10 + 6 * 2 * 2
    chosen = {name: summary[name] for name in ("validation", "judge_weights", "chosen_by")}
    assert chosen == {name: TUNED[name] for name in ("validation", "judge_weights")} | {"chosen_by": "judges"}
    assert (tmp_path / "rounds" / "export" / "pytorch_lora_weights.safetensors").read_bytes() == b"adapters"
    with pytest.raises(ValueError, match="finished"):
        make_iteration(tmp_path / "rounds", tmp_path, rounds=1, resume=True).fit()


@pytest.mark.slow
def test_what_people_ranked_is_learned(tmp_path: Path) -> None:
    write_database(tmp_path / "db")
    changes = {"annotators": None, "rounds": 1, "prompts_per_round": 2, "dataset": tmp_path / "db", "held_out": None}
    with pytest.raises(RankingsNeeded) as wanted:
        make_iteration(tmp_path / "rounds", tmp_path, **changes).fit()
    images = tmp_path / "rounds" / "round_01" / "rankings"
    assert wanted.value.images == images
    with pytest.raises(ValueError, match="unfinished iteration"):
        make_iteration(tmp_path / "rounds", tmp_path, **changes).fit()
    items = read_items(images)
    log = AnswerLog(images / ANSWERS, items)
    for item in items:
        log.append(Answer.checked(item, "Ann", "ranks", [1, 2], None, 1.0))
    log.close()
    summary = make_iteration(tmp_path / "rounds", tmp_path, resume=True, **changes).fit()
    (figures,) = summary["rounds"]
    assert figures["rankings"] == 2
    reward = json.loads((tmp_path / "rounds" / "round_01" / "reward" / "summary.json").read_text())
    assert reward["test/table"]["this model"] == reward["test/accuracy"]
    assert figures["reward_accuracy"] == reward["validation"]["accuracy"]
    assert summary["network_evaluations"] == figures["network_evaluations"] + 2 * 2 * 2
    assert summary["best_round"] == 1
    one, other = (
        load_file(folder / "export" / "pytorch_lora_weights.safetensors")
        for folder in (tmp_path / "rounds", tmp_path / "rounds" / "round_01" / "tuning")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [str(run.relative_to(tmp_path)) for run in find_runs([tmp_path / "rounds"])] == [
        "rounds",
        "rounds/round_01/reward",
        "rounds/round_01/tuning",
    ]
    page = (tmp_path / "rounds" / "report.html").read_text()
    assert 'id="rounds"' in page
    with pytest.raises(ValueError, match="finished"):
        make_iteration(tmp_path / "rounds", tmp_path, resume=True, **changes).fit()


def go(folder: Path, data: Path) -> None:
    """In a process of its own: begin the rounds, or continue them."""
    torch.set_num_threads(1)
    make_iteration(folder, data, resume=folder.exists()).fit()


MOMENTS = (
    "round_01/rankings/0002_1_base.png",
    f"round_01/rankings/{ANSWERS}/rankings.jsonl",
    "round_01/reward/checkpoints/last.ckpt",
    "round_01/tuning/checkpoints/last.ckpt",
    f"round_02/rankings/{COLLECTED}/rankings.jsonl",
    "round_02/tuning/base.safetensors",
)
"""A process is killed soon after such a file appears."""


@pytest.mark.slow
def test_rounds_that_are_killed_again_and_again_end_with_the_same_figures(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("whole", "killed")]
    go(folders[0], tmp_path)
    for moment in (*MOMENTS, None):
        process = CLEAN.Process(target=go, args=(folders[1], tmp_path / "other"))
        process.start()
        if moment is None:
            process.join()
            assert process.exitcode == 0
            break
        while process.is_alive() and not (folders[1] / moment).exists():
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -9
        assert not (folders[1] / "summary.json").exists()
        assert (folders[1] / "report.html").exists() == moment.startswith("round_02")  # after each round
    one, other = (json.loads((folder / "summary.json").read_text()) for folder in folders)
    assert one | {"git_commit": ""} == other | {"git_commit": ""}
    assert [figures["rankings"] for figures in one["rounds"]] == [6, 12]
    for name in ("round_02/reward/export/reward", "round_02/tuning/export/pytorch_lora_weights"):
        weights = [load_file(folder / f"{name}.safetensors") for folder in folders]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    tuned = [load_file(folders[0] / f"round_0{n}/tuning/export/pytorch_lora_weights.safetensors") for n in (1, 2)]
    assert any(not torch.equal(tuned[0][key], tuned[1][key]) for key in tuned[0])
