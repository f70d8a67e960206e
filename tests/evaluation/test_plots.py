"""Every plot shows the values that it was given, for any prompt and any amount of data."""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

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
from tests.evaluation.pictures import assert_picture, points, texts, ticks

ROWS = [
    {"step": step, "train/loss": 0.7 / step, "val/loss": "", "train/accuracy": "", "val/accuracy": ""}
    for step in range(1, 20)
]
for step, loss, accuracy in ((5, 0.6, 0.6), (10, 0.5, 0.8), (15, 0.55, 0.7)):
    ROWS[step - 1] |= {"val/loss": loss, "val/accuracy": accuracy}


def write_metrics(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_learning_curves_have_every_measured_value_and_mark_the_best(
    figures: dict[str, Figure], tmp_path: Path
) -> None:
    learning_curves(write_metrics(tmp_path / "metrics.csv", ROWS), tmp_path / "curves.png")
    assert_picture(tmp_path / "curves.png")
    loss, accuracy = figures["curves.png"].axes
    assert points(loss, "training") == (list(range(1, 20)), pytest.approx([0.7 / step for step in range(1, 20)]))
    assert points(loss, "validation") == ([5, 10, 15], [0.6, 0.5, 0.55])
    assert points(loss, "best, 0.500") == ([10], [0.5])  # the lowest loss
    assert points(accuracy, "validation") == ([5, 10, 15], [0.6, 0.8, 0.7])
    assert points(accuracy, "best, 0.800") == ([10], [0.8])  # the highest accuracy
    assert len(accuracy.lines) == 2  # none of training accuracy, which was not measured
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("optimiser step", "loss (eq. 4)")
    assert accuracy.get_ylabel() == "preference accuracy"


def test_learning_curves_without_rows_are_empty(figures: dict[str, Figure], tmp_path: Path) -> None:
    learning_curves(write_metrics(tmp_path / "metrics.csv", []), tmp_path / "empty.png")
    assert_picture(tmp_path / "empty.png")
    assert [len(axes.lines) for axes in figures["empty.png"].axes] == [0, 0]


def test_rewards_stand_by_rank_relative_to_their_prompt(figures: dict[str, Figure], tmp_path: Path) -> None:
    reward_by_rank([3.0, 1.0, 2.0, 5.0, 7.0], [1, 2, 2, 1, 3], [0, 0, 0, 1, 1], tmp_path / "ranks.png")
    assert_picture(tmp_path / "ranks.png")
    (axes,) = figures["ranks.png"].axes
    (bars,) = axes.containers  # prompts' means are 2 and 6
    line, _, (stems,) = bars.lines
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([1, 2, 3], [0, -0.5, 1])
    ends = np.array([segment[:, 1] for segment in stems.get_segments()])
    np.testing.assert_allclose(ends, [[-1, 1], [-1, 0], [1, 1]])  # standard errors; one image alone has none
    assert texts(axes) == ["n=2", "n=2", "n=1"]
    assert ticks(axes, "x") == ["1", "2", "3"]


def test_ranks_with_few_images_do_not_set_the_scale(figures: dict[str, Figure], tmp_path: Path) -> None:
    scores = np.array([0.5, -0.5] * 10 + [100.0])
    ranks = np.array([1, 2] * 10 + [3])
    reward_by_rank(scores - scores.mean(), ranks, np.zeros(21, int), tmp_path / "ranks.png")
    (axes,) = figures["ranks.png"].axes
    assert axes.get_ylim()[1] < 5


@pytest.mark.parametrize("comparisons", [0, 1, 50])
def test_calibration_stands_beside_the_diagonal(figures: dict[str, Figure], tmp_path: Path, comparisons: int) -> None:
    scores = np.random.default_rng(0).normal(size=100)
    result = calibration(scores, np.arange(comparisons), np.arange(comparisons) + 50)
    calibration_plot(result, tmp_path / "calibration.png")
    assert_picture(tmp_path / "calibration.png")
    (axes,) = figures["calibration.png"].axes
    assert points(axes, "perfectly calibrated") == ([0, 1], [0, 1])
    assert axes.lines[1].get_xdata().tolist() == result.predicted.tolist()
    assert axes.lines[1].get_ydata().tolist() == result.observed.tolist()
    (dots,) = axes.collections
    np.testing.assert_array_equal(np.asarray(dots.get_offsets()), np.stack([result.predicted, result.observed], 1))
    areas = dots.get_sizes() - 15
    np.testing.assert_allclose(areas * max(1, result.count.max(initial=0)), 250 * result.count)
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 1), (0, 1))
    assert axes.get_title() == f"expected calibration error {result.error:.3f}"


@pytest.mark.parametrize("prompt", ["costs $5 and $x_{$", r"\frac{1", "a\nb " * 60, "<b>&amp;</b> 圖 🎨", "word" * 60])
@pytest.mark.filterwarnings("ignore:Glyph")
def test_ranking_sheet_takes_any_prompt_as_text(figures: dict[str, Figure], tmp_path: Path, prompt: str) -> None:
    images = [Image.new("RGB", (64, 48), color) for color in ("red", "green", "blue")]
    ranking_sheet([(prompt, images, [2, 1, 2]), ("a", images[:1], [1])], [[0.1, 0.0, -1.0], [2.0]], tmp_path / "s.png")
    assert_picture(tmp_path / "s.png", min_colors=5)
    grid = np.array(figures["s.png"].axes).reshape(2, 4)
    (shown,) = grid[0, 0].texts
    assert "".join(prompt.split()).startswith("".join(shown.get_text().removesuffix("…").split()))
    assert not shown.get_parse_math()
    assert [axes.get_title() for axes in grid[0, 1:]] == ["rank 1", "rank 2", "rank 2"]
    assert [texts(axes) for axes in grid[0, 1:]] == [["+0.00"], ["+0.10"], ["-1.00"]]
    best = np.asarray(grid[0, 1].images[0].get_array())
    np.testing.assert_array_equal(best, np.asarray(images[1]))  # the green one
    assert [len(axes.images) for axes in grid[1]] == [0, 1, 0, 0]


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


def test_accuracy_bars_begin_at_chance_and_end_at_the_mean(figures: dict[str, Figure], tmp_path: Path) -> None:
    rows = [Row(name, Interval(0.4 + 0.1 * i, 0.38 + 0.1 * i, 0.43 + 0.1 * i)) for i, name in enumerate(NAMES)]
    rows += [Row("ImageReward", published=65.14), Row("nothing", Interval(np.nan, np.nan, np.nan)), Row("empty")]
    accuracy_bars(rows, "$ of {", tmp_path / "bars.png")
    accuracy_bars([], "", tmp_path / "none.png")
    assert_picture(tmp_path / "bars.png")
    assert_picture(tmp_path / "none.png", min_colors=2)
    (axes,) = figures["bars.png"].axes
    bars = [bar for bar in axes.patches if np.isfinite(bar.get_width())]
    assert {bar.get_x() for bar in bars} == {50}
    np.testing.assert_allclose([bar.get_width() for bar in bars], [-10, 0, 10, 20], atol=1e-9)
    stems = [line.get_segments()[0][:, 0] for line in axes.collections[:4]]
    np.testing.assert_allclose(stems, [[38, 43], [48, 53], [58, 63], [68, 73]])
    assert points(axes, "published") == ([65.14], [4])
    assert texts(axes)[:5] == ["40.0", "50.0", "60.0", "70.0", "65.1"]
    assert ticks(axes, "y") == [*(shortened(name, 32) for name in NAMES), "ImageReward", "nothing"]  # none for `empty`
    assert not any(label.get_parse_math() for label in axes.get_yticklabels())
    assert axes.get_title() == "$ of {"
    low, high = axes.get_xlim()
    assert low < 38 and high > 73
    assert axes.yaxis_inverted()  # the first row is at the top
    assert not figures["none.png"].axes[0].patches


def test_random_and_ceiling_are_gray(figures: dict[str, Figure], tmp_path: Path) -> None:
    rows = [Row(name, Interval(0.6, 0.5, 0.7)) for name in ("random", "CLIP Score", "annotator ceiling")]
    accuracy_bars(rows, "", tmp_path / "bars.png")
    colors = [bar.get_facecolor()[:3] for bar in figures["bars.png"].axes[0].patches]
    assert colors[0] == colors[2] != colors[1]


@pytest.mark.parametrize("count", [1, 4])
def test_agreement_map_has_the_matrix_in_per_cent(figures: dict[str, Figure], tmp_path: Path, count: int) -> None:
    matrix = np.full((count, count), 0.61)
    np.fill_diagonal(matrix, 1)
    matrix[0, -1] = 0.87 if count > 1 else 1
    agreement_map(NAMES[:count], matrix, tmp_path / "map.png")
    assert_picture(tmp_path / "map.png")
    axes = figures["map.png"].axes[0]
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), 100 * matrix)
    assert axes.images[0].get_clim() == (50, 100)
    assert texts(axes) == [f"{100 * value:.0f}" for value in matrix.flat]
    assert ticks(axes, "x") == ticks(axes, "y") == [shortened(name, 24) for name in NAMES[:count]]
    agreement_map(NAMES[:count], np.full((count, count), np.nan), tmp_path / "nan.png")
    assert set(texts(figures["nan.png"].axes[0])) == {"nan"}


def test_of_a_long_name_the_end_is_kept() -> None:
    assert [shortened("reward/2026-08-01", width) for width in (17, 8)] == ["reward/2026-08-01", "…6-08-01"]
