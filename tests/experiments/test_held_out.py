"""What the studies of tuning read from run folders, and the arithmetic on it."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from experiments.algorithms import study as algorithms
from experiments.gradients_per_rollout import study as gradients_per_rollout
from experiments.held_out import GOLD, JUDGES, KL, Course, at_end, courses, difference, gain, read_scores
from experiments.overoptimisation.guard import RULES, kept
from experiments.runs import Run, finished, train_all
from t2ifb.config import schema
from t2ifb.config.compose import compose_all
from t2ifb.evaluation.scoring import ScoreSheet
from tests.experiments.conftest import Drawn

NAMES = ("reward", *JUDGES, *GOLD, *KL)


def write_run(folder: Path, course: dict[str, list[float]]) -> Run:
    """A finished run with two prompts of two images; scores rise from 0 and 2 (prompt means) by what `course` says."""
    (folder / "samples").mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"git_commit": "none"}))
    length = len(next(iter(course.values())))
    for at in range(length):
        with (folder / f"samples/step_{at * 5:06d}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["prompt", *NAMES])
            for prompt, base in (("a", 0.0), ("b, c", 2.0)):
                for image in (-1, 1):
                    writer.writerow([prompt, *(base + image + course.get(name, [0.0] * length)[at] for name in NAMES)])
    clock = {0: 0.0, 5: 10.0, 10: 23.0, 15: 33.0}  # the validation at step 5 took three seconds
    diversity = course.get("diversity", [0.0] * length)
    rows = ["step,wall_seconds,train/reward,val/reward,val/diversity"]
    rows += [f"{step},{clock[step]},{'1' if step else ''},1,{diversity[n]}" for n, step in enumerate([*clock][:length])]
    rows += [f"{length * 5 + 1},99,1,,", f"{length * 5 + 3},103,1,,"]  # two updates in four seconds
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    return Run(folder, ("+experiment=refl",))


def test_scores_are_read_by_prompt(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"gold": [0.0, 1.0]})
    scores = read_scores(run.path / "samples/step_000005.csv")
    assert list(scores) == list(NAMES)
    assert scores["gold"].tolist() == [1, 3] and scores["reward"].tolist() == [0, 2]


def test_gains_are_paired_and_averaged_over_seeds_by_prompt() -> None:
    base = [{"gold": np.array([0.0, 1.0, 5.0])}, {"gold": np.array([1.0, 1.0, 1.0])}]
    tuned = [{"gold": base[0]["gold"] + [1, 2, 3]}, {"gold": base[1]["gold"] - [1, 2, 3]}]
    found = gain(base, tuned, "gold")
    assert [one["mean"] for one in found["seeds"]] == [2, -2]
    assert found["over_seeds"] == {"mean": 0, "low": 0, "high": 0}  # prompt by prompt the seeds cancel


def test_a_course_has_its_steps_pace_and_the_guards_figure(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"image_reward": [0.0, 4.0, 2.0], "kl": [-1.0, 8.0, 15.0]})
    course = Course.of(run)
    assert course.steps == [0, 5, 10]
    assert course.seconds_per_update == pytest.approx(2.0) and course.seconds == 103
    deviation = np.std([-1, 1, 1, 3], ddof=1)  # of the base model's images
    assert [rises["image_reward"] for rises in course.rises] == pytest.approx([0, 4 / deviation, 2 / deviation])
    assert course.judges == pytest.approx([0, 0.5, 0.5 / deviation])  # a judge of four, half a deviation at most
    weighted = {"judge_weights": {"image_reward": 1.0, "clip_score": 0.5, "aesthetic_score": 0.5, "blip_score": 0.0}}
    (run.path / "summary.json").write_text(json.dumps(weighted))
    assert Course.of(run).judges == pytest.approx([0, 0.5, min(0.5, 1 / deviation)])
    figures = courses([run, run])
    assert figures["kl"] == [[0, 0], [9, 9], [16, 16]]
    assert [at["over_seeds"]["mean"] for at in figures["gain"]["image_reward"]] == [0, 4, 2]


def test_what_runs_have_more_than_others_is_told_with_its_sign(tmp_path: Path) -> None:
    more, less = (write_run(tmp_path / name, {"gold": [0.0, end]}) for name, end in (("more", 3.0), ("less", 1.0)))
    assert at_end([more], [less])["gold"]["over_seeds"]["mean"] == 2
    for name, scores in (("kept", more), ("last", less)):
        ScoreSheet.read(scores.path / "samples/step_000005.csv").write(more.path / f"samples/test_{name}.csv")
    assert difference([more], [more], "kept", "last")["gold"]["seeds"][0]["mean"] == 2
    assert difference([more], [more], "kept")["gold"]["seeds"][0]["mean"] == 0


def test_each_rule_keeps_what_it_says(tmp_path: Path) -> None:
    course = {name: [0.0, 1.0, 2.0, 1.0] for name in JUDGES} | {
        "clip_score": [0.0, 9.0, 1.5, -2.0],
        "reward": [0.0, 1.0, 2.0, 30.0],
        "gold": [0.0, 0.1, 0.3, -0.2],
        "diversity": [0.3, 0.1, 0.1, 0.2],
    }
    chosen = {rule: choose(Course.of(write_run(tmp_path / rule, course))) for rule, choose in RULES.items()}
    assert chosen["mean of the judges"] == 1 and chosen["clip_score"] == 1
    assert chosen["worst judge"] == chosen["mean, at most 0.25 above the worst"] == 2
    assert chosen["mean of the judges with other encoders"] == 2
    assert chosen["before the judges' mean first falls"] == 1
    assert chosen["reward"] == chosen["the last"] == chosen["mean of judges and reward"] == chosen["diversity"] == 3
    assert chosen["smallest KL (the first)"] == 1 and chosen["gold (looks)"] == 2
    run = write_run(tmp_path / "one more", course)
    last, looks = kept([run], RULES["the last"]), kept([run, run], RULES["gold (looks)"])
    assert last is not None and last["gold"] == pytest.approx(-0.2)
    assert looks is not None and looks["worst"] == pytest.approx(0.3)


def test_a_judge_that_is_the_reward_has_no_say(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"aesthetic_score": [0.0, 9.0], "clip_score": [0.0, -1.0]})
    for file in (run.path / "samples").glob("*.csv"):
        sheet = ScoreSheet.read(file)
        columns = {name: column for name, column in sheet.columns.items() if name != "aesthetic_score"}
        ScoreSheet(sheet.prompts, columns).write(file)
    course = Course.of(run)
    assert "aesthetic_score" not in course.judged_by and len(course.judged_by) == len(JUDGES) - 1
    assert course.judges[1] < 0
    assert "aesthetic_score" not in courses([run])["gain"]
    assert kept([run], RULES["aesthetic_score"]) is None and kept([run], RULES["worst judge"]) is not None


def test_finished_runs_are_left_alone_and_old_ones_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", {"gold": [0.0, 1.0]})
    assert train_all([run], 1) == 0
    assert "1 runs, 0 of them to train" in capsys.readouterr().out
    schema.register()
    (composed,) = compose_all("train", ["+experiment=refl"])
    config = OmegaConf.masked_copy(composed.config, [key for key in composed.config if key != "hydra"])
    (run.path / ".hydra").mkdir()
    OmegaConf.save(config, run.path / ".hydra" / "config.yaml")
    missing = Run(run.path.with_name("missing"), run.overrides)
    assert finished({"one": [run], "two": [run, missing]}) == {"one": [run]}
    assert "skipped because some runs are not finished: two" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no variant has finished runs"):
        finished({"two": [missing]})
    with pytest.raises(SystemExit, match="settings differ from the current ones: .*run; delete"):
        finished({"one": [Run(run.path, ("+experiment=refl", "optimizer.lr=7"))]})


def test_a_run_that_fails_is_counted_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = [Run(tmp_path / name / "run", ("+experiment=nothing",)) for name in ("one", "two")]
    assert train_all(broken, 2) == 2
    assert "two/run: failed with 2; " in capsys.readouterr().out
    assert "nothing" in (tmp_path / "one" / "run.log").read_text()


@pytest.mark.parametrize("study", [algorithms, gradients_per_rollout])
def test_what_variants_gain_is_drawn_against_what_they_cost(study: Any, tmp_path: Path, drawn: Drawn) -> None:
    runs = [write_run(tmp_path / name, {"gold": [0.0, 1.0], "kl": [-1.0, 8.0]}) for name in ("one", "other")]
    study.draw({"variants": {run.path.name: courses([run]) for run in runs}}, tmp_path / "result.png")
    assert drawn.shows(0, 1, *np.sqrt([0, 9])) if study is algorithms else drawn.shows(0, 1, 5)
    assert {text.get_text() for text in drawn.figure.legends[0].get_texts()} == {"one", "other"}
