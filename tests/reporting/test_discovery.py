import os
from pathlib import Path
from typing import Any

import pytest

from t2ifb.reporting.discovery import common_parent, find_runs
from tests.reporting.parts import write_reward_run, write_tuning_run


def test_runs_are_found_at_any_depth_and_each_once(tmp_path: Path) -> None:
    a = write_tuning_run(tmp_path / "shapes" / "refl" / "a")
    b = write_reward_run(tmp_path / "shapes" / "reward" / "b")
    (a / "checkpoints" / "inner" / ".hydra").mkdir(parents=True)
    (tmp_path / ".hidden" / ".hydra").mkdir(parents=True)
    assert find_runs([tmp_path]) == [a, b]
    assert find_runs([b, tmp_path, a, a / ".."]) == [b, a]


def test_a_summary_alone_makes_a_run_only_where_there_is_none_below(tmp_path: Path) -> None:
    run = write_tuning_run(tmp_path / "sweep" / "0")
    (tmp_path / "sweep" / "summary.json").write_text("{}")
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "summary.json").write_text("{}")
    assert find_runs([tmp_path]) == [run, tmp_path / "table"]


def test_what_loggers_write_into_a_run_is_no_run(tmp_path: Path) -> None:
    run = write_tuning_run(tmp_path / "shapes" / "refl" / "a")
    for folder in ("csv", "lightning_logs/version_0", "mine"):
        (run / folder).mkdir(parents=True)
        (run / folder / "metrics.csv").write_text("step\n0\n")
    (run / "mine" / "summary.json").write_text("{}")
    assert find_runs([tmp_path]) == find_runs([run]) == [run]


def test_the_rounds_of_an_iteration_are_runs_and_their_rankings_are_not(tmp_path: Path) -> None:
    root = tmp_path / "rounds"
    for name in ("", "round_01/reward", "round_01/tuning"):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "settings.json").write_text("{}")
    (root / "round_01" / "rankings").mkdir()
    (root / "round_01" / "rankings" / "summary.json").write_text("{}")
    assert find_runs([root]) == [root, root / "round_01" / "reward", root / "round_01" / "tuning"]


def test_a_folder_of_drawn_images_is_no_run(tmp_path: Path) -> None:
    run = write_tuning_run(tmp_path / "refl" / "a")
    (tmp_path / "generate" / "b" / ".hydra").mkdir(parents=True)
    (tmp_path / "generate" / "b" / ".hydra" / "config.yaml").write_text("domain: shapes\nlora: null\n")
    assert find_runs([tmp_path]) == [run]


def test_a_file_a_missing_folder_and_an_empty_one_are_refused(tmp_path: Path) -> None:
    run = write_tuning_run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"metrics.csv is a file; expected a run folder"):
        find_runs([run / "metrics.csv"])
    with pytest.raises(FileNotFoundError):
        find_runs([tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no run found in .*empty; expected a run folder"):
        find_runs([tmp_path / "empty"])


def test_the_page_goes_where_all_runs_are() -> None:
    assert common_parent([Path("/o/a/1"), Path("/o/b/2")]) == Path("/o")
    assert common_parent([Path("/o/a/1")]) == Path("/o/a/1")


def test_an_unreadable_folder_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_tuning_run(tmp_path / "run")
    (tmp_path / "locked").mkdir()
    (run / "mine").mkdir()
    locked = (tmp_path / "locked", run / "mine")

    def refuse(call: Any) -> Any:
        def refused(path: Any, *arguments: Any, **options: Any) -> Any:
            if any(folder in (Path(path), *Path(path).parents)[call is not os.scandir :] for folder in locked):
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *arguments, **options)

        return refused

    monkeypatch.setattr(os, "stat", refuse(os.stat))  # root may read everything
    monkeypatch.setattr(os, "scandir", refuse(os.scandir))
    with pytest.raises(PermissionError):
        (tmp_path / "locked" / "metrics.csv").is_file()
    assert find_runs([tmp_path]) == [run]
