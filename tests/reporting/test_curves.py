"""Metrics over the steps of a run, read and thinned."""

from pathlib import Path

import pytest

from t2ifb.reporting.curves import Curves, read_curves, spread
from t2ifb.reporting.files import Notes
from t2ifb.reporting.runs import read_run


def test_figures_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.csv").write_text("step,val/kl,val/gold,train/loss\n0,0,0.5,nan\n5,nan,x,nan\n9,2\n10,inf,0.7,\n")
    run = read_run(folder)
    assert run.val.step == [0, 10]
    assert run.val.columns == {"kl": [0, None], "gold": [0.5, 0.7]}
    assert run.notes[0].startswith(".hydra/config.yaml: is missing")
    assert run.notes[1].startswith("metrics.csv: 1 of its lines have another number of cells")
    assert run.notes[2].endswith("skipped (val/gold, val/kl)")  # NaN is no error


@pytest.mark.parametrize(("count", "most"), [(0, 3), (2, 3), (10, 3), (10, 1), (10, 10)])
def test_thinning_keeps_the_ends(count: int, most: int) -> None:
    some = spread(count, most)
    assert len(some) == min(count, most) == len(set(some))
    if count and most > 1:
        assert (some[0], some[-1]) == (0, count - 1)


@pytest.mark.parametrize("most", [1, 2, 3, 7])
def test_thinning_keeps_what_was_kept(most: int) -> None:
    for kept in range(20):
        some = spread(20, most, kept)
        assert kept in some and len(some) == most and some == sorted(set(some))
        assert most < 3 or (some[0], some[-1]) == (0, 19)


def read(folder: Path, text: str) -> tuple[dict[str, Curves], list[str]]:
    (folder / "metrics.csv").write_text(text)
    notes = Notes(folder)
    return read_curves(folder / "metrics.csv", notes), notes.texts


def test_rows_are_sorted_and_kinds_are_apart(tmp_path: Path) -> None:
    curves, notes = read(tmp_path, "step,wall_seconds,train/loss,val/kl\n5,2.5,0.5,\n1,,,0\n,9,9,9\n3,1,0.7,4\n")
    assert curves["train"] == Curves([3, 5], [1, 2.5], {"loss": [0.7, 0.5]})
    assert curves["val"] == Curves([1, 3], [None, 1], {"kl": [0, 4]})
    assert notes == []


def test_a_missing_file_is_no_curve_and_no_error(tmp_path: Path) -> None:
    notes = Notes(tmp_path)
    curves = read_curves(tmp_path / "metrics.csv", notes)
    assert {kind: curve.step for kind, curve in curves.items()} == {"train": [], "val": []}
    assert notes.texts == []


def test_a_step_has_what_was_measured_there(tmp_path: Path) -> None:
    curves, _ = read(tmp_path, "step,val/kl,val/gold\n0,0,\n5,2,0.5\n")
    assert curves["val"].at(0) == {"kl": 0}
    assert curves["val"].at(5) == {"kl": 2, "gold": 0.5}
    assert curves["val"].at(3) == curves["val"].at(None) == {}


def test_thinned_rows_stay_together() -> None:
    steps = [float(step) for step in range(100)]
    curves = Curves(
        steps, [step / 10 for step in steps], {"double": [2 * step for step in steps], "none": [None] * 100}
    )
    thin = curves.thinned(7, kept=41.0)
    assert len(thin.step) == 7 and 41 in thin.step and (thin.step[0], thin.step[-1]) == (0, 99)
    assert thin.wall == [step / 10 for step in thin.step]
    assert thin.columns == {"double": [2 * step for step in thin.step], "none": [None] * 7}
    assert curves.thinned(100) == curves


def test_numbers_on_the_page_are_short() -> None:
    curves = Curves([0.0], [1.25], {"kl": [1 / 3], "gold": [None]})
    assert curves.as_data() == {"step": [0.0], "wall": [1.25], "columns": {"kl": [0.333333], "gold": [None]}}
