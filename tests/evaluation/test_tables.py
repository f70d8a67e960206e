"""The table says the same on the screen, in Markdown, CSV and JSON."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from t2ifb.evaluation.statistics import Interval
from t2ifb.evaluation.tables import HEADINGS, Row, cells, screen_table, write_table

ROWS = [
    Row("random", Interval(0.5, 0.45, 0.55), Interval(0.51, 0.4, 0.6), 0, 800),
    Row("CLIP Score", Interval(0.62, 0.58, 0.66), Interval(0.61, 0.57, 0.65), 3, 800, published=54.82),
    Row("[bold]mine[/] | a", Interval(0.7, 0.66, 0.74), None, 0, 800, against=Interval(0.08, 0.05, 0.11)),
    Row("ImageReward", published=65.14),
]


def test_cells_stand_under_their_headings() -> None:
    shown = dict(zip(HEADINGS, cells(ROWS[2]), strict=True))
    assert shown["scorer"] == "[bold]mine[/] | a"
    assert shown["accuracy %"] == "70.00 [66.0, 74.0]"
    assert shown["difference"] == "+8.00 [+5.0, +11.0]"
    assert shown["published %"] == ""


def test_the_screen_shows_names_as_text() -> None:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(screen_table(ROWS, "Preference accuracy"))
    text = console.export_text()
    assert "[bold]mine[/] | a" in text
    assert "minus CLIP Score" in text
    assert "54.82" in text


def test_columns_without_content_are_left_out() -> None:
    table = screen_table([Row("random", Interval(0.5, 0.4, 0.6))], "")
    assert [column.header for column in table.columns] == ["scorer", "accuracy %"]


def test_files_hold_every_row(tmp_path: Path) -> None:
    write_table(ROWS, tmp_path)
    lines = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1  # a name's bar ends no cell
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["scorer"] for row in rows] == [row.name for row in ROWS]
    data = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert data[1]["accuracy"] == {"mean": 0.62, "low": 0.58, "high": 0.66}
    assert data[3]["accuracy"] is None


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_table([Row("nothing", Interval(np.nan, np.nan, np.nan))], tmp_path)

    def refuse(token: str) -> None:
        pytest.fail(f"{token} is not JSON")

    data = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert data[0]["accuracy"]["mean"] is None
