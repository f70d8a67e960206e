"""Plots of tuned models show the values that they were given."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from t2ifb.evaluation import plots, tuning_plots
from t2ifb.evaluation.comparison import Gain
from t2ifb.evaluation.statistics import Interval
from t2ifb.evaluation.tuning_plots import gain_bars, progress_sheet, trade_off, tuning_curves
from tests.evaluation.pictures import assert_picture, points, texts, ticks


def test_letters_that_the_font_lacks_are_one_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    plots._say_missing.cache_clear()
    for name in ("a", "b"):
        images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
        progress_sheet(["猫と犬", "ねこ \U0001f534"], {"base": images}, tmp_path / f"{name}.png")
        assert_picture(tmp_path / f"{name}.png", 2)
    assert len(recwarn) == 0
    assert [record.getMessage() for record in caplog.records if "missing in the font" in record.getMessage()] != []
    assert len(caplog.records) == 1


def test_long_names_stand_side_by_side_above_a_sheet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(tuning_plots, "save", lambda figure, path: figures.append(figure))
    names = ["shapes/refl/2026-08-01_10-22-33_123456", "alpha_$5_$6/2026-08-01_10-22-33_123457_12"]
    progress_sheet(["a"], dict.fromkeys(names, np.zeros((1, 3, 8, 8), np.uint8)), tmp_path / "sheet.png")
    figures[0].draw_without_rendering()
    titles = [axes.title for axes in figures[0].axes[1:]]
    assert [title.get_text().replace("\n", "") for title in titles] == names
    assert not any(title.get_parse_math() for title in titles)
    one, other = (title.get_window_extent() for title in titles)
    assert one.x1 < other.x0


def test_a_sheet_has_a_row_for_each_prompt_and_a_column_for_each_model(
    figures: dict[str, Figure], tmp_path: Path
) -> None:
    columns = {name: torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8) for name in ("base", "$tuned$")}
    progress_sheet(["a red $ circle", "<b>"], columns, tmp_path / "sheet.png", notes=["first note", "second note"])
    assert_picture(tmp_path / "sheet.png", 2)
    grid = np.array(figures["sheet.png"].axes).reshape(2, 3)
    assert [texts(axes) for axes in grid[:, 0]] == [["a red $ circle\nfirst note"], ["<b>\nsecond note"]]
    assert [axes.get_title() for axes in grid[0]] == ["", "base", "$tuned$"]
    for row in range(2):
        for axes, images in zip(grid[row, 1:], columns.values(), strict=True):
            np.testing.assert_array_equal(np.asarray(axes.images[0].get_array()), images[row].permute(1, 2, 0).numpy())


def gain(name: str, base: float, tuned: float, trained_on: bool = False) -> Gain:
    difference = tuned - base
    return Gain(
        name, base, tuned, Interval(difference, difference - 0.1, difference + 0.2), Interval(0.5, 0, 1), trained_on
    )


def test_bars_go_from_the_base_model_to_each_tuned_one(figures: dict[str, Figure], tmp_path: Path) -> None:
    rows = {
        "one": [gain("gold", 0.5, 0.75), gain("reward", 1.0, 3.0, trained_on=True)],
        "other": [gain("gold", 0.5, 0.25), gain("reward", 1.0, np.nan)],
    }
    gain_bars(rows, tmp_path / "bars.png")
    assert_picture(tmp_path / "bars.png")
    gold, reward = figures["bars.png"].axes
    assert [axes.get_title() for axes in (gold, reward)] == ["gold", "reward"]
    assert [(bar.get_x(), bar.get_width()) for bar in gold.patches] == [(0.5, 0.25), (0.5, -0.25)]
    assert gold.lines[0].get_xdata() == [0.5, 0.5]
    stems = [line.get_segments()[0][:, 0] for line in gold.collections]
    np.testing.assert_allclose(stems, [[0.65, 0.95], [0.15, 0.45]])  # the interval of the difference
    assert len(reward.collections) == 1  # a gain that is unknown has no interval
    assert ticks(gold, "y") == ["one", "other"] and set(ticks(reward, "y")) <= {""}
    assert gold.patches[0].get_facecolor() != reward.patches[0].get_facecolor() != reward.patches[1].get_facecolor()


def test_many_scorers_fill_rows_of_four(figures: dict[str, Figure], tmp_path: Path) -> None:
    gain_bars({"one": [gain(str(number), 0, 1) for number in range(6)]}, tmp_path / "bars.png")
    axes = figures["bars.png"].axes
    assert [each.get_title() for each in axes] == [*"012345", "", ""]
    assert [each.axison for each in axes] == [True] * 6 + [False] * 2


def test_runs_stand_by_the_root_of_their_kl_and_the_front_begins_at_the_base_model(
    figures: dict[str, Figure], tmp_path: Path
) -> None:
    trade_off(["$a$", "b", "c"], [9.0, 4.0, -1e-9], [0.3, 0.1, -0.2], [True, True, False], tmp_path / "front.png")
    assert_picture(tmp_path / "front.png")
    (axes,) = figures["front.png"].axes
    assert points(axes, "runs") == ([3, 2, 0], [0.3, 0.1, -0.2])
    assert points(axes, "Pareto front") == ([0, 2, 3], [0, 0.1, 0.3])
    assert texts(axes) == ["base model", "b", "$a$"]  # names of those on the front, by their distance
    assert not axes.texts[2].get_parse_math()


def test_a_front_without_runs_is_the_base_model_alone(figures: dict[str, Figure], tmp_path: Path) -> None:
    trade_off(["a"], [4.0], [-0.1], [False], tmp_path / "front.png")
    (axes,) = figures["front.png"].axes
    assert points(axes, "Pareto front") == ([0], [0])
    assert texts(axes) == ["base model"]


def test_every_validation_metric_has_a_panel_with_its_values(figures: dict[str, Figure], tmp_path: Path) -> None:
    rows: list[dict[str, float]] = [
        {"step": 0, "val/reward": 1.0, "val/kl": 0.0},
        {"step": 5, "train/loss": 9.0},
        {"step": 10, "val/reward": 2.0, "val/kl": 3.0, "val/gold": 0.5},
    ]
    tuning_curves(rows, tmp_path / "curves.png")
    assert_picture(tmp_path / "curves.png")
    panels = {axes.get_title(): axes for axes in figures["curves.png"].axes}
    found = {
        name: [np.asarray(values).tolist() for values in axes.lines[0].get_data()] for name, axes in panels.items()
    }
    assert found == {
        "gold": [[10], [0.5]],
        "kl": [[0, 10], [0, 3]],
        "reward": [[0, 10], [1, 2]],
    }
    assert {name: axes.lines[1].get_ydata()[0] for name, axes in panels.items()} == {"gold": 0.5, "kl": 0, "reward": 1}
    assert {axes.get_xlabel() for axes in panels.values()} == {"update"}
