"""The jobs of a sweep, best first, and those on the Pareto front of gain and distance."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2ifb.evaluation import sweep_table
from t2ifb.evaluation.sweep_table import Job, SweepTable, pareto_front


def write_job(folder: Path, overrides: str = "", summary: dict[str, Any] | None = None, error: str = "") -> Path:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(overrides)
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    if error:
        (folder / "failed.json").write_text(json.dumps({"error": error}))
    return folder


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_no_run_on_the_front_is_beaten_and_every_other_is(points: list[tuple[int, int]]) -> None:
    gains, costs = (np.array(side, float) for side in zip(*points, strict=True))
    front = pareto_front(gains, costs)
    for number in range(len(points)):
        beaten = any(
            gains[other] >= gains[number] and costs[other] <= costs[number]
            and (gains[other] > gains[number] or costs[other] < costs[number])
            for other in range(len(points))
        )  # fmt: skip
        assert front[number] != beaten


def test_the_table_puts_the_best_first_and_marks_the_front(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, judges, kl in (
        ("a", 0.1, 1.0),
        ("aa", math.nan, 1.0),
        ("b", 0.3, 9.0),
        ("c", 0.2, 16.0),
        ("e", -0.123456789, 0.5),  # nearest to the base model, and worse than it
        ("d", None, None),
    ):
        (tmp_path / name / ".hydra").mkdir(parents=True)
        text = f"- +experiment=refl\n- algorithm.beta={kl}\n"
        (tmp_path / name / ".hydra" / "overrides.yaml").write_text(text)
        summary = {"chosen_by": "judges", "validation": {"judges": judges, "kl": kl, "gold": 0.7}}
        if judges is not None:
            (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    table = SweepTable(tmp_path)
    assert [job.folder.name for job in table.jobs] == ["b", "c", "a", "e", "aa", "d"]
    assert {folder.name for folder in table.on_front} == {"a", "b"}
    assert [job.folder.name for job in table.unfinished] == ["d"]
    table.write()
    assert "best first by judges" in " ".join(capsys.readouterr().out.split())
    lines = (tmp_path / "sweep.csv").read_text().splitlines()
    assert lines[0] == "run,beta,judges,kl,gold,front,state"
    assert lines[1] == "b,9.0,0.3,9.0,0.7,*,finished" and lines[6].endswith(",not finished")
    assert "| 9 | 0.3 |" in " ".join((tmp_path / "sweep.md").read_text().split())  # rounded for people only
    assert lines[4] == "e,0.5,-0.123456789,0.5,0.7,,finished"
    assert (tmp_path / "sweep.png").stat().st_size > 5000


def test_where_no_run_is_better_than_the_base_model_none_is_on_the_front(tmp_path: Path) -> None:
    (tmp_path / "a" / ".hydra").mkdir(parents=True)
    (tmp_path / "a" / ".hydra" / "overrides.yaml").write_text("- +experiment=refl\n")
    (tmp_path / "a" / "summary.json").write_text('{"chosen_by": "judges", "validation": {"judges": -0.1, "kl": 2}}')
    table = SweepTable(tmp_path)
    table.write()
    assert not table.on_front and (tmp_path / "sweep.png").stat().st_size > 5000
    assert (tmp_path / "sweep.csv").read_text() == "run,judges,kl,front\na,-0.1,2,\n"


def test_a_job_is_read_in_each_of_its_states(tmp_path: Path) -> None:
    arguments = "- +experiment=refl\n- optimizer.lr=1e-4\n- reward.source=a=b\n"
    done = {"chosen_by": "judges", "validation": {"judges": 0.5, "kl": 3.0}}
    finished = Job.read(write_job(tmp_path / "finished", arguments, done, error="of an earlier try"))
    assert finished.overrides == {"experiment": "refl", "optimizer.lr": "1e-4", "reward.source": "a=b"}
    assert (finished.state, finished.is_placed, finished.rank) == ("finished", True, 0.5)
    failed = Job.read(write_job(tmp_path / "failed", error="no space left\nmore"))
    assert (failed.state, failed.overrides, failed.is_placed) == ("failed: no space left", {}, False)
    begun = Job.read(write_job(tmp_path / "begun", "[]"))
    assert (begun.state, begun.rank) == ("not finished", -math.inf)
    reward = Job.read(write_job(tmp_path / "reward", "", {"chosen_by": "accuracy", "validation": {"accuracy": 0.7}}))
    assert (reward.rank, reward.is_placed) == (0.7, False)


def test_jobs_of_an_earlier_sweep_are_left_out(tmp_path: Path) -> None:
    for name, time in (("old", 1_000), ("new", 2_000)):
        file = write_job(tmp_path / name, "- seed=1\n") / ".hydra" / "overrides.yaml"
        os.utime(file, (time, time))
    assert [job.folder.name for job in SweepTable(tmp_path, since=1_999).jobs] == ["new"]
    assert len(SweepTable(tmp_path).jobs) == 2


def test_no_jobs_make_no_table(tmp_path: Path) -> None:
    SweepTable(tmp_path).write()
    assert list(tmp_path.iterdir()) == []


def test_keys_that_end_alike_are_written_whole(tmp_path: Path) -> None:
    for number in range(2):
        arguments = f"- optimizer.lr={number}\n- encoder.lr={number}\n- seed={number}\n- same=1\n"
        done = {"chosen_by": "accuracy", "validation": {"accuracy": number / 10}}
        write_job(tmp_path / str(number), arguments, done)
    SweepTable(tmp_path).write()
    lines = (tmp_path / "sweep.csv").read_text().splitlines()
    assert lines == ["run,optimizer.lr,encoder.lr,seed,accuracy", "1,1,1,1,0.1", "0,0,0,0,0.0"]
    assert not (tmp_path / "sweep.png").exists()  # a reward run has no distance


def test_the_picture_has_the_placed_jobs_and_their_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(sweep_table, "trade_off", lambda *arguments: drawn.extend(arguments))
    for name, judges, kl in (("a", 0.1, 1.0), ("b", 0.3, 4.0), ("c", 0.2, 9.0)):
        done = {"chosen_by": "judges", "validation": {"judges": judges, "kl": kl}}
        write_job(tmp_path / name, f"- algorithm.beta={kl / 3}\n", done)
    write_job(tmp_path / "d", "- algorithm.beta=7\n")
    SweepTable(tmp_path).write()
    names, kl, judges, on_front, path = drawn
    assert names == ["beta=1.333", "beta=3", "beta=0.3333"]
    assert (kl, judges, on_front) == ([4, 9, 1], [0.3, 0.2, 0.1], [True, False, True])
    assert path == tmp_path / "sweep.png"


def judged(judges: float, kl: float, **weights: float) -> dict[str, Any]:
    """Summary of a job."""
    return {"chosen_by": "judges", "validation": {"judges": judges, "kl": kl}, "judge_weights": weights}


def test_without_judges_the_gain_of_the_reward_is_called_so_and_is_on_no_front(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, gain in (("a", 0.1), ("b", 0.3)):
        write_job(tmp_path / name, f"- seed={name}\n", judged(gain, 1.0, reward=1.0))
    table = SweepTable(tmp_path)
    assert [job.folder.name for job in table.jobs] == ["b", "a"]
    assert table.placed == [] and not table.judges_differ
    table.write()
    assert (tmp_path / "sweep.csv").read_text() == "run,seed,reward_gain,kl\nb,b,0.3,1.0\na,a,0.1,1.0\n"
    assert not (tmp_path / "sweep.png").exists()
    assert "best first by the gain of their own reward (no judges)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("other", [{"pick_score": 1.0}, {"clip_score": 1.0, "pick_score": 1.0}, {"reward": 1.0}])
def test_gains_by_different_judges_have_no_front(
    other: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_job(tmp_path / "a", "- seed=1\n", judged(0.1, 1.0, clip_score=0.6))
    write_job(tmp_path / "b", "- seed=2\n", judged(0.3, 4.0, clip_score=0.3))  # the same share
    SweepTable(tmp_path).write()
    assert (tmp_path / "sweep.png").exists() and ",front\n" in (tmp_path / "sweep.csv").read_text()
    assert "weights differ" not in capsys.readouterr().out
    write_job(tmp_path / "c", "- seed=3\n", judged(0.5, 9.0, **other))
    table = SweepTable(tmp_path)
    assert table.judges_differ and not table.on_front
    table.write()
    assert not (tmp_path / "sweep.png").exists() and "front" not in (tmp_path / "sweep.csv").read_text()
    warning = "the judges or their weights differ"
    assert warning in " ".join(capsys.readouterr().out.split()) and warning in (tmp_path / "sweep.md").read_text()


def test_a_finished_job_with_other_settings_is_named_and_not_ranked(tmp_path: Path) -> None:
    write_job(tmp_path / "new", "- seed=1\n", judged(0.1, 1.0))
    old = write_job(tmp_path / "old", "- seed=2\n", judged(0.9, 0.1))
    (old / "refused.json").write_text("{}")
    table = SweepTable(tmp_path)
    assert [job.folder.name for job in table.jobs] == ["new", "old"]
    assert table.unfinished == [] and table.on_front == {tmp_path / "new"}
    table.write()
    lines = (tmp_path / "sweep.csv").read_text().splitlines()
    assert lines[1:] == ["new,1,0.1,1.0,*,finished", "old,2,,,,finished with other settings"]


def test_different_settings_look_different(tmp_path: Path) -> None:
    for n, lr in enumerate(("0.0012341", "0.00123411")):
        arguments = f"- seed={20240001 + n}\n- optimizer.lr={lr}\n- algorithm.beta={(1 + n) / 3}\n"
        write_job(tmp_path / str(n), arguments, judged(0.12345 + n, 1.0))
    SweepTable(tmp_path).write()
    first, second = (tmp_path / "sweep.md").read_text().splitlines()[:-3:-1]
    cells = [[cell.strip() for cell in line.split("|")[2:6]] for line in (first, second)]
    assert cells == [["20240001", "0.0012341", "0.3333", "0.1235"], ["20240002", "0.00123411", "0.6667", "1.123"]]


def test_settings_and_errors_are_text_in_markdown(tmp_path: Path) -> None:
    write_job(tmp_path / "a", "- 'prompts.source=a|b*c*'\n", judged(0.1, 1.0))
    write_job(tmp_path / "b", "- prompts.source=c\n", error="no | [file](x)")
    SweepTable(tmp_path).write()
    text = (tmp_path / "sweep.md").read_text()
    assert r"a\|b\*c\*" in text and r"no \| \[file\](x)" in text
    assert len({line.replace(r"\|", "").count("|") for line in text.splitlines()[2:]}) == 1


def test_a_setting_named_like_a_figure_keeps_its_own_column(tmp_path: Path) -> None:
    for n in range(2):
        write_job(tmp_path / str(n), f"- algorithm.kl={n}\n", judged(0.1, 4.0 + n))
    SweepTable(tmp_path).write()
    assert (tmp_path / "sweep.csv").read_text().splitlines()[1] == "0,0,0.1,4.0,*"
