"""The newest finished reward run is found, and what a run is trained on is recorded and compared."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from t2ifb.utils.reward_runs import (
    EXPORT,
    RECORD,
    changed_reward,
    export_hashes,
    members,
    newest_reward_run,
    read_record,
    write_record,
)


def finished_run(run: Path, second: int = 1) -> Path:
    """A run that was finished at this second."""
    (run / EXPORT).parent.mkdir(parents=True)
    (run / EXPORT).write_bytes(run.name.encode())
    (run / "summary.json").write_text("{}")
    os.utime(run / "summary.json", (second, second))
    return run


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_run_counts_once_it_has_results_and_an_export(tmp_path: Path) -> None:
    assert newest_reward_run(tmp_path / "nowhere") is None and newest_reward_run(tmp_path) is None
    run = finished_run(tmp_path / "run")
    assert newest_reward_run(tmp_path) == run
    for file in (run / EXPORT, run / "summary.json"):
        content = file.read_bytes()
        file.unlink()
        assert newest_reward_run(tmp_path) is None
        file.write_bytes(content)
    assert newest_reward_run(tmp_path) == run


def test_the_newest_run_is_the_one_finished_last_for_any_name_and_depth(tmp_path: Path) -> None:
    finished_run(tmp_path / "z", 10)
    below = finished_run(tmp_path / "experiment" / "a", 20)
    finished_run(tmp_path / "experiment" / "b", 15)
    assert newest_reward_run(tmp_path) == below
    beside = finished_run(tmp_path / "b", 30)
    assert newest_reward_run(tmp_path) == beside
    finished_run(tmp_path / "sweep" / "2026-01-01" / "0", 40)  # a job of a sweep
    assert newest_reward_run(tmp_path) == beside


def test_of_runs_that_were_finished_together_the_last_by_name_is_the_newest(tmp_path: Path) -> None:
    for day in (7, 3, 9, 1, 5, 8, 2, 6, 4):
        finished_run(tmp_path / f"2026-01-0{day}")
    finished_run(tmp_path / "a" / "2026-01-10")
    assert newest_reward_run(tmp_path) == tmp_path / "a" / "2026-01-10"


def test_the_newest_run_has_a_full_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished_run(tmp_path / "runs" / "a")
    monkeypatch.chdir(tmp_path)
    assert newest_reward_run(Path("runs")) == run


def test_a_mix_has_its_scorers_as_members_and_another_reward_itself() -> None:
    one, other = {"_target_": "x", "source": "a"}, {"_target_": "y"}
    assert members({"_target_": "mix", "scorers": {"a": one, "b": other}}) == [one, other]
    assert members(one) == [one]


def test_hashes_are_those_of_the_exports_that_are_there(tmp_path: Path) -> None:
    a, b, c = (str(finished_run(tmp_path / name)) for name in "abc")
    assert export_hashes({"_target_": "x", "source": a}) == {a: sha256("a")}
    assert export_hashes({"_target_": "ensemble", "sources": [b, c]}) == {b: sha256("b"), c: sha256("c")}
    scorers: dict[str, Any] = {
        "one": {"source": a},
        "many": {"sources": [c]},
        "clip": {"source": {"_target_": "clip", "model": "ViT"}},
        "hub": {"source": "someone/reward"},
        "plain": {"sources": None},
    }
    assert export_hashes({"_target_": "mix", "scorers": scorers}) == {a: sha256("a"), c: sha256("c")}
    (Path(a) / EXPORT).unlink()
    assert export_hashes({"source": a}) == {}


@pytest.mark.parametrize("reward", [{"_target_": "x", "source": "Ünï/日本", "k": [1.0, None, True]}, None])
def test_a_record_is_read_as_it_was_written(reward: dict[str, Any] | None, tmp_path: Path) -> None:
    write_record(tmp_path / RECORD, {"_target_": "before"}, {"before": "0"})
    write_record(tmp_path / RECORD, reward, {"a": "12", "b": "34"})
    assert read_record(tmp_path / RECORD) == {"reward": reward, "hashes": {"a": "12", "b": "34"}}
    assert json.loads((tmp_path / RECORD).read_text()) == read_record(tmp_path / RECORD)
    assert [file.name for file in tmp_path.iterdir()] == [RECORD]  # nothing is left of the writing


@pytest.mark.parametrize(
    ("now", "what"),
    [
        ({"b": "2", "a": "1"}, ""),
        ({"a": "1", "b": "3"}, "b is not"),
        ({"a": "1"}, "b (gone) is not"),
        ({"a": "1", "b": "2", "c": "3"}, "c is not"),
        ({"/moved/b": "2", "/moved/a": "1"}, ""),
        ({"b": "0", "/moved/a": "1"}, "b is not"),
        ({"b": "1", "a": "2"}, "a, b is not"),
        ({"b": "2", "/other/a": "4"}, "/other/a, a (gone) is not"),
        ({}, "a (gone), b (gone) is not"),
    ],
)
def test_all_that_differs_from_the_start_of_a_run_is_named(now: dict[str, str], what: str) -> None:
    expected = f"reward: {what} what the run was started with; start a new run" if what else ""
    assert changed_reward({"reward": None, "hashes": {"a": "1", "b": "2"}}, now) == expected
