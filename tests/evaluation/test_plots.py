"""Every picture is written, whatever the prompt says and however little there is to show."""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from t2ifb.evaluation import plots, tuning_plots
from t2ifb.evaluation.metrics import calibration
from t2ifb.evaluation.plots import (
    accuracy_bars,
    agreement_map,
    calibration_plot,
    learning_curves,
    ranking_sheet,
    reward_by_rank,
    shortened,
)
from t2ifb.evaluation.statistics import Interval
from t2ifb.evaluation.tables import Row
from t2ifb.evaluation.tuning_plots import progress_sheet

ROWS = [
    {"step": step, "train/loss": 0.7 / step, "val/loss": 0.6 if step % 5 == 0 else "", "val/accuracy": ""}
    for step in range(1, 20)
]


def assert_picture(path: Path, min_colors: int = 3) -> None:
    with Image.open(path) as image:
        assert min(image.size) > 100
        colors = image.convert("RGB").getcolors(1 << 24)
    assert colors is not None
    assert len(colors) >= min_colors


@pytest.mark.parametrize("rows", [ROWS, []])
def test_learning_curves(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    with (tmp_path / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(rows)
    learning_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert_picture(tmp_path / "curves.png")


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


def test_reward_by_rank(tmp_path: Path) -> None:
    reward_by_rank([3.0, 1.0, 2.0, 5.0], [1, 2, 2, 1], [0, 0, 0, 1], tmp_path / "ranks.png")
    assert_picture(tmp_path / "ranks.png")


@pytest.mark.parametrize("comparisons", [0, 1, 50])
def test_calibration_plot(tmp_path: Path, comparisons: int) -> None:
    scores = np.random.default_rng(0).normal(size=100)
    result = calibration(scores, np.arange(comparisons), np.arange(comparisons) + 50)
    calibration_plot(result, tmp_path / "calibration.png")
    assert_picture(tmp_path / "calibration.png")


@pytest.mark.parametrize("prompt", ["costs $5 and $x_{$", r"\frac{1", "a\nb " * 60, "<b>&amp;</b> 圖 🎨", "word" * 60])
@pytest.mark.filterwarnings("ignore:Glyph")
def test_ranking_sheet_takes_any_prompt_as_text(tmp_path: Path, prompt: str) -> None:
    images = [Image.new("RGB", (64, 48), color) for color in ("red", "green", "blue")]
    ranking_sheet([(prompt, images, [2, 1, 2]), ("a", images[:1], [1])], [[0.1, 0.0, -1.0], [2.0]], tmp_path / "s.png")
    assert_picture(tmp_path / "s.png", min_colors=5)


def test_ranking_sheet_marks_mistakes_and_nothing_else(tmp_path: Path) -> None:
    images = [Image.new("RGB", (64, 64), "gray")] * 3

    def orange(scores: list[float]) -> int:
        ranking_sheet([("p", images, [1, 2, 2])], [scores], tmp_path / "sheet.png")
        with Image.open(tmp_path / "sheet.png") as image:
            red, _, blue = np.asarray(image.convert("RGB"), int).transpose(2, 0, 1)
        return int((red - blue > 150).sum())

    assert orange([3.0, 1.0, 2.0]) == 0  # tied ranks may be scored in any order
    assert 0 < orange([1.5, 1.0, 2.0]) < orange([0.0, 1.0, 2.0])


def test_ranking_sheet_without_rankings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one ranking"):
        ranking_sheet([], [], tmp_path / "sheet.png")


def test_no_figure_touches_pyplot() -> None:
    assert "t2ifb.evaluation.plots" in sys.modules
    source = Path(sys.modules["t2ifb.evaluation.plots"].__file__ or "").read_text(encoding="utf-8")
    assert "pyplot" not in source


NAMES = ["CLIP Score", r"\frac{1 $x_{$", "a very long name of a scorer that nobody would give it " * 3, ""]


def test_accuracy_bars(tmp_path: Path) -> None:
    rows = [Row(name, Interval(0.4 + 0.1 * i, 0.38 + 0.1 * i, 0.43 + 0.1 * i)) for i, name in enumerate(NAMES)]
    rows += [Row("ImageReward", published=65.14), Row("nothing", Interval(np.nan, np.nan, np.nan)), Row("empty")]
    accuracy_bars(rows, "$ of {", tmp_path / "bars.png")
    accuracy_bars([], "", tmp_path / "none.png")
    assert_picture(tmp_path / "bars.png")
    assert_picture(tmp_path / "none.png", min_colors=2)


@pytest.mark.parametrize("count", [1, 4])
def test_agreement_map(tmp_path: Path, count: int) -> None:
    matrix = np.full((count, count), 0.61)
    np.fill_diagonal(matrix, 1)
    agreement_map(NAMES[:count], matrix, tmp_path / "map.png")
    assert_picture(tmp_path / "map.png")
    agreement_map(NAMES[:count], np.full((count, count), np.nan), tmp_path / "nan.png")


def test_of_a_long_name_the_end_is_kept() -> None:
    assert [shortened("reward/2026-08-01", width) for width in (17, 8)] == ["reward/2026-08-01", "…6-08-01"]


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
