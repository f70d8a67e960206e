import json
import shutil
from pathlib import Path

import pytest

from t2ifb.evaluation.guidance_verdict import headline
from t2ifb.evaluation.statistics import Interval
from t2ifb.finetuning.results import verdict_sentence
from t2ifb.reporting.runs import FIGURE8, OTHER, REWARD, TABLE1, TUNING, read_run
from tests.reporting.parts import PROMPTS, write_evaluations, write_reward_run, write_tuning_run


def test_a_tuning_run_is_read(tmp_path: Path) -> None:
    run = read_run(write_tuning_run(tmp_path / "run", beta=0.5))
    assert (run.kind, run.state, run.notes, run.kept) == (TUNING, "finished", [], 10)
    assert run.val.step == [0, 10, 20, 30]
    assert run.train.step == [11, 21, 31]
    assert run.val.columns["kl"] == [0, 10, 20, 30]
    assert run.settings["algorithm.beta"] == 0.5
    assert run.settings["git_commit"] == "ab" * 6
    assert run.changes() == pytest.approx(
        {"reward": 0.1, "judges": 0.7, "gold": -0.005, "kl": 10, "kl_without_last_two": 2.5}
    )
    assert [samples.step for samples in run.samples] == [0, 10, 20, 30]
    assert run.samples[0].prompts == PROMPTS
    assert run.samples[0].size == (16, 16)
    assert run.samples[1].scores[1]["reward"] == pytest.approx(0.1)  # of the first image of the second prompt
    assert [gain.name for gain in run.results.gains["kept"]] == ["reward", "clip_score", "gold"]
    assert run.sentence.startswith("Kept step 10")


def test_what_speaks_against_a_run_is_said_in_a_few_words(tmp_path: Path) -> None:
    run = read_run(write_tuning_run(tmp_path / "run"))
    assert run.verdict == []
    rows = [
        {"step": step, "val/reward": step, "val/judges": judges, "val/kl": step, "val/kl_without_last_two": 0}
        for step, judges in ((0, 0.0), (1, -0.1), (2, -0.3))
    ]
    run.summary["sentence"] = verdict_sentence(rows, 1, lambda *_: Interval(-0.3, -0.5, -0.1))
    assert run.verdict == ["over-optimised later", "no better than base"]
    better, worse, chance = Interval(0.1, 0.05, 0.15), Interval(-0.1, -0.15, -0.05), Interval(0.0, -0.1, 0.1)
    for own, best, scales, words in (
        (better, better, (1, 4, 4), []),
        (better, chance, (1, 4, 1), ["gain disappears with guidance"]),
        (better, worse, (1, 4, 1), ["gain disappears with guidance"]),
        (better, worse, (1, 1, 4), ["gain turns into a loss with guidance"]),
        (chance, worse, (1, 4, 1), ["worse than base"]),
        (chance, chance, (1, 4, 4), ["no gain shown"]),
    ):
        run.summary["sentence"] = headline(own, best, *scales)
        assert run.verdict == words


def test_every_kind_of_run_is_known(tmp_path: Path) -> None:
    write_evaluations(tmp_path)
    assert read_run(write_reward_run(tmp_path / "reward")).kind == REWARD
    table = read_run(tmp_path / "table1")
    assert (table.kind, len(table.results.table1), table.results.table1[1].accuracy) == (TABLE1, 2, None)
    figure = read_run(tmp_path / "figure8")
    assert (figure.kind, list(figure.results.figure8)) == (FIGURE8, ["A", "B"])
    assert figure.results.figure8["A"][1].trained_on
    (tmp_path / "other").mkdir()
    assert read_run(tmp_path / "other").kind == OTHER


def test_a_run_that_has_only_begun_is_known_by_its_configuration(tmp_path: Path) -> None:
    folder = write_tuning_run(tmp_path / "run", finished=False)
    run = read_run(folder)
    assert (run.kind, run.state, run.kept, run.is_empty) == (TUNING, "unfinished", 10, False)
    (folder / "metrics.csv").write_text("step,wall_seconds,val/judges,val/kl\n0,0,0,0\n1,1,-0.2,1\n2,2,-0.1,2\n")
    assert read_run(folder).kept == 2  # the base model is no checkpoint
    (folder / "metrics.csv").unlink()
    run = read_run(folder)
    assert (run.kind, run.is_empty, run.notes) == (TUNING, True, [])


def test_a_run_that_was_started_from_python_has_its_own_record_of_settings(tmp_path: Path) -> None:
    folder = write_tuning_run(tmp_path / "run")
    shutil.rmtree(folder / ".hydra")
    assert any("settings are unknown" in note for note in read_run(folder).notes)
    settings = {"algorithm": {"_target_": "t2ifb.finetuning.run.FineTuner", "beta": 0.5}, "optimizer": {"lr": 1e-3}}
    (folder / "settings.json").write_text(json.dumps(settings))
    run = read_run(folder)
    assert run.notes == [] and (run.settings["algorithm.beta"], run.settings["optimizer.lr"]) == (0.5, 1e-3)
    (folder / "metrics.csv").unlink()
    assert read_run(folder).kind == TUNING


def test_a_failed_job_of_a_sweep_says_why(tmp_path: Path) -> None:
    folder = write_tuning_run(tmp_path / "run", finished=False)
    (folder / "failed.json").write_text('{"error": "no space left\\nmore", "kind": "StorageError"}')
    run = read_run(folder)
    assert (run.state, run.notes) == ("failed", ["failed: no space left"])


def test_what_is_broken_is_noted_and_the_rest_is_read(tmp_path: Path) -> None:
    folder = write_tuning_run(tmp_path / "run")
    metrics = folder / "metrics.csv"
    metrics.write_bytes(metrics.read_bytes()[:-20])
    (folder / "summary.json").write_text('{"sentence": "Ke')
    (folder / "table_kept.json").write_text(json.dumps([{"name": "gold", "tuned": 1}, 3]))
    (folder / "table_last.json").write_text("{}")
    (folder / "reward.json").write_text("[]")
    (folder / ".hydra" / "config.yaml").write_text("a: [1")
    strip = folder / "samples" / "step_000010_strip.png"
    strip.write_bytes(strip.read_bytes()[:40])
    (folder / "samples" / "step_000020_strip.png").unlink()
    (folder / "samples" / "step_000020.png").touch()
    (folder / "samples" / "step_000030.csv").write_text("prompt,reward\n")
    run = read_run(folder)
    assert run.kind == TUNING
    assert [samples.step for samples in run.samples] == [0]
    assert run.val.step == [0, 10, 20, 30]
    assert run.train.step == [11, 21]
    notes = "\n".join(run.notes)
    for text in (
        "config.yaml: not valid YAML",
        "summary.json: not valid JSON",
        "reward.json: expected a dict",
        "metrics.csv: the last line is truncated",
        "table_kept.json: an entry",
        "table_last.json: expected a list",
        "step_000010_strip.png: cannot be read",
        "step_000020_strip.png: is missing",
        "step_000030.csv: has no prompts",
    ):
        assert text in notes
    assert not run.results.gains


def test_a_run_without_judges_has_no_gain_of_judges(tmp_path: Path) -> None:
    folder = write_tuning_run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"judge_weights": {"reward": 1.0}}))
    run = read_run(folder)
    assert "judges" not in run.val.columns and "judges" not in run.changes()
    assert run.notes == ["no judges: chosen by the reward"]
    (folder / "summary.json").write_text(json.dumps(summary | {"judge_weights": {"clip_score": 1.0}}))
    run = read_run(folder)
    assert "judges" in run.changes() and run.notes == [] and run.judge_weights == {"clip_score": 1.0}


def test_an_unfinished_run_without_judges_is_known_by_its_settings(tmp_path: Path) -> None:
    folder = write_tuning_run(tmp_path / "run", finished=False)
    config = folder / ".hydra" / "config.yaml"
    text = config.read_text()
    config.write_text(text + "judges: {clip_score: null}\n")
    run = read_run(folder)
    assert "judges" not in run.val.columns and run.kept == 30  # of the highest reward
    config.write_text(text + "judges: {clip_score: {_target_: a.B}}\n")
    (folder / "judge_weights.json").write_text('{"weights": {"clip_score": 0.6}}')
    run = read_run(folder)
    assert run.kept == 10 and run.judge_weights == {"clip_score": 0.6}
