"""What a run prints and draws."""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from t2ifb.evaluation import figures
from t2ifb.evaluation.preference import calibration, evaluate_preference
from t2ifb.evaluation.tables import Row, screen_table, write_table

RESULT = evaluate_preference([0.1, 0.9, 0.4, 0.6], [1, 3], [0, 2], [0, 1])
ROWS = [Row("a | [bold]b", RESULT.accuracy, RESULT.accuracy_by_prompt, 0, 2), Row("theirs", published=62.82)]


def test_names_are_text_in_every_form(tmp_path: Path) -> None:
    console = Console(record=True, width=100, file=(tmp_path / "screen").open("w"))
    console.print(screen_table(ROWS, "title"))
    assert "a | [bold]b" in console.export_text()
    write_table(ROWS, tmp_path)
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert {line.replace(r"\|", "").count("|") for line in lines} == {lines[0].count("|")}
    with (tmp_path / "table.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["scorer"] == "a | [bold]b"
    assert json.loads((tmp_path / "table.json").read_text())[1]["published"] == 62.82


def test_columns_that_nobody_fills_are_left_out() -> None:
    headings = [column.header for column in screen_table([ROWS[1]], "title").columns]
    assert headings == ["scorer", "published %"]


def test_every_picture_is_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{"step": i, "train/loss": 0.7, "val/accuracy": 0.6 if i % 2 else ""} for i in range(4)]
    figures.learning_curves(rows, tmp_path / "curves.png")
    figures.reward_by_rank(rng.normal(size=8), [1, 2, 3, 4] * 2, [0] * 4 + [1] * 4, tmp_path / "ranks.png")
    figures.calibration_plot(calibration(rng.normal(size=4), [0, 1], [2, 3]), tmp_path / "calibration.png")
    pictures = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    figures.ranking_sheet([("$x_2$ <b>", pictures, [2, 1, 1])], [[0.1, 0.2, 0.3]], tmp_path / "sheet.png")
    for path in tmp_path.glob("*.png"):
        colors = Image.open(path).convert("RGB").getcolors(1 << 20)
        assert colors is not None
        assert len(colors) > 10, path.name
