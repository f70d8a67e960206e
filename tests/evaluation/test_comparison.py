"""What tuning changed, per scorer, from paired scores."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from t2ifb.evaluation.comparison import HEADINGS, gains, write_gains

RNG = np.random.default_rng(0)
BASE = RNG.standard_normal(40)


def test_a_constant_gain_is_found_exactly() -> None:
    (row,) = gains({"a": BASE}, {"a": BASE + 0.25}, images_per_prompt=2)
    assert row.difference.mean == pytest.approx(0.25)
    assert row.difference.low == pytest.approx(0.25)
    assert row.win_rate.mean == 1.0
    assert row.tuned - row.base == pytest.approx(0.25)


def test_images_of_a_prompt_are_one_unit_and_equal_scores_half_a_win() -> None:
    (row,) = gains({"a": [0.0, 0.0, 1.0, 1.0]}, {"a": [1.0, 0.0, 1.0, 1.0]}, images_per_prompt=2)
    assert row.difference.mean == pytest.approx(0.25)
    assert row.win_rate.mean == pytest.approx(0.625)


def test_no_opinion_is_left_out() -> None:
    (row,) = gains({"a": [np.nan, 1.0, 2.0]}, {"a": [5.0, 2.0, np.nan]})
    assert (row.base, row.tuned) == (1.0, 2.0)


def test_tables_say_the_same(tmp_path: Path) -> None:
    rows = gains({"a, b": BASE, "c": BASE}, {"a, b": BASE + 1, "c": BASE - 1}, trained_on=["c"])
    write_gains(rows, tmp_path, "gains")
    assert rows[1].cells()[0] == "c (trained on)"
    assert len(rows[0].cells()) == len(HEADINGS)
    with (tmp_path / "gains.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert table[0]["scorer"] == "a, b"
    assert float(table[0]["difference"]) == pytest.approx(1.0)
    assert [float(table[0][f"win_rate{end}"]) for end in ("", "_low", "_high")] == [1, 1, 1]
    assert [row["trained_on"] for row in table] == ["False", "True"]
    assert json.loads((tmp_path / "gains.json").read_text())[1]["trained_on"] is True
    assert (tmp_path / "gains.md").read_text().count("\n") == 4
    assert r"\bottomrule" in (tmp_path / "gains.tex").read_text()
