"""Final tables of runs come back from their files as they were written."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2ifb.evaluation.comparison import Gain, gains, write_gains
from t2ifb.evaluation.statistics import Interval
from t2ifb.evaluation.tables import Row, write_table
from t2ifb.reporting.files import Notes
from t2ifb.reporting.results import Results, read_results
from tests.reporting.parts import gain, row


def read(folder: Path, summary: dict[str, Any] | None = None) -> tuple[Results, list[str]]:
    notes = Notes(folder)
    return read_results(folder, summary or {}, notes), notes.texts


def test_gains_are_read_as_they_were_written(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    scores = [{name: random.normal(size=6) for name in ("gold", "reward")} for _ in range(2)]
    written = gains(*scores, images_per_prompt=2, trained_on=["reward"])
    write_gains(written, tmp_path, "table_kept")
    results, notes = read(tmp_path)
    assert results.gains == {"kept": written}
    assert results.any and notes == []
    assert not (results.accuracy or results.table1 or results.figure8)


def test_accuracies_are_read_as_they_were_written_and_test_comes_first(tmp_path: Path) -> None:
    rows = [
        Row("CLIP Score", Interval(0.6, 0.5, 0.7), Interval(0.6, 0.5, 0.7), 1, 9, tau=Interval(0.1, 0.0, 0.2)),
        Row("published only", published=65.14),
        Row("fast", Interval(0.6, 0.5, 0.7), against=Interval(0.0, -0.1, 0.1), images_per_second=12.5),
    ]
    for split in ("compositional", "test", "alpha"):
        write_table(rows, tmp_path, f"table_{split}")
    write_table(rows[:1], tmp_path, "table1")
    results, notes = read(tmp_path)
    assert list(results.accuracy) == ["test", "alpha", "compositional"]
    assert results.accuracy["test"] == rows
    assert results.table1 == rows[:1]
    assert notes == []


def test_what_is_unknown_is_nan_again(tmp_path: Path) -> None:
    nothing = Interval(math.nan, math.nan, math.nan)
    write_gains([Gain("kl", math.nan, 1.0, nothing, nothing)], tmp_path, "table_kept")
    (found,) = read(tmp_path)[0].gains["kept"]
    assert math.isnan(found.base) and found.tuned == 1 and math.isnan(found.difference.mean)


def test_figure_8_of_a_finished_run_has_the_names_of_its_models(tmp_path: Path) -> None:
    models = {"a/run": {"gold": gain("gold", 0.1), "reward": gain("reward", 0.2, True)}, "empty": {}, "broken": 3}
    (tmp_path / "figure8.json").write_text(json.dumps([gain("gold", 9.0)]))
    results, notes = read(tmp_path, {"figure8": models})
    assert list(results.figure8) == ["a/run"]
    assert [(each.name, each.trained_on) for each in results.figure8["a/run"]] == [("gold", False), ("reward", True)]
    assert notes == []


def test_figure_8_of_an_interrupted_run_is_read_from_its_tables_in_their_order(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        (tmp_path / f"figure8_{number}.json").write_text(json.dumps([gain("gold", number)]))
    results, _ = read(tmp_path)
    assert list(results.figure8) == ["figure8_1", "figure8_2", "figure8_10"]
    assert [rows[0].difference.mean for rows in results.figure8.values()] == [1, 2, 10]


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        (3, "TypeError"),
        ({"name": "gold", "tuned": 1}, "KeyError"),
        (gain("gold", 0.1) | {"difference": 3}, "TypeError"),
        (gain("gold", 0.1) | {"difference": {"mean": 1}}, "KeyError"),
    ],
)
def test_an_entry_of_another_form_is_noted_and_the_others_are_read(tmp_path: Path, entry: Any, what: str) -> None:
    (tmp_path / "table_kept.json").write_text(json.dumps([entry, gain("gold", 0.1)]))
    results, notes = read(tmp_path)
    assert [each.name for each in results.gains["kept"]] == ["gold"]
    assert (
        len(notes) == 1 and notes[0].startswith("table_kept.json: an entry has an unexpected form") and what in notes[0]
    )


def test_numbers_that_are_none_are_left_out_of_a_row(tmp_path: Path) -> None:
    wild = row("gold", 0.7) | {"ties": "x", "comparisons": 12.0, "published": None}
    (tmp_path / "table_test.json").write_text(json.dumps([wild]))
    (found,) = read(tmp_path)[0].accuracy["test"]
    assert (found.ties, found.comparisons, found.published) == (None, 12, None)


def test_an_empty_folder_has_no_results(tmp_path: Path) -> None:
    results, notes = read(tmp_path)
    assert not results.any and notes == []
