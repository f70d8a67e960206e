"""The guard's figure, and whether it changed."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from PIL import Image

from t2ifb.data.rankings import RankedPrompt
from t2ifb.evaluation.score_cache import ScoreCache
from t2ifb.evaluation.scoring import ScoreSheet
from t2ifb.evaluation.selection import accuracies, best_of, change, normalized_gain, selection_score, weights_of
from tests.evaluation.parts import Brightness, weights

RISES = st.lists(st.floats(-9, 9), min_size=1, max_size=6)


def test_one_judge_cannot_carry_the_others() -> None:
    assert selection_score([2.0, -1.0, -0.9, -0.1]) == pytest.approx(-0.5)  # their mean is 0
    assert selection_score([0.3, -0.1]) == pytest.approx(0.1)  # no judge is far from the others: their mean
    assert np.isnan(selection_score([0.3, math.nan]))


def test_judges_count_by_their_weight() -> None:
    assert selection_score([0.4, 0.0], weights=[3.0, 1.0]) == pytest.approx(0.3)
    assert selection_score([2.0, -1.0], weights=[9.0, 1.0]) == pytest.approx(-0.5)  # the worst still limits it
    assert selection_score([0.4, -9.0, math.nan], weights=[0.2, 0.0, 0.0]) == pytest.approx(0.4)  # no weight: no say
    np.testing.assert_allclose(selection_score([[0.4, 0.0], [0.0, 0.4]], weights=[3.0, 1.0]), [0.3, 0.1])


@given(RISES)
def test_it_lies_between_the_worst_judge_and_the_mean(rises: list[float]) -> None:
    mean = sum(rises) / len(rises)
    assert min(rises) - 1e-9 <= selection_score(rises) <= mean + 1e-9
    assert selection_score(rises, math.inf) == pytest.approx(mean)
    assert selection_score(rises, 0.0) == pytest.approx(min(rises), abs=1e-9)


def test_a_rise_is_in_standard_deviations_of_the_base_models_scores() -> None:
    before = np.array([1.0, 2.0, 3.0, 4.0])
    assert normalized_gain(before, before + 2) == pytest.approx(2 / np.std(before, ddof=1))
    assert normalized_gain([1.0, np.nan, 3.0], [2.0, 9.0, np.nan]) == pytest.approx(1 / 2**0.5)
    assert normalized_gain(before[:1], before[:1] + 2) == 2  # one image has no deviation
    assert normalized_gain([0.0] * 4, [0.0, 0.0, 0.0, 1.0]) == 0.25  # equal scores have none either
    assert np.isnan(normalized_gain([np.nan], [1.0]))


def test_the_best_image_has_the_highest_score_and_the_first_of_equal_ones_wins() -> None:
    scores = [[0.1, 0.5, 0.5], [np.nan, -2.0, -3.0], [np.nan] * 3, [1.0, 0.0, np.inf]]
    assert best_of(scores).tolist() == [1, 1, 0, 2]
    assert best_of(np.zeros((2, 1))).tolist() == [0, 0]


def sheet(**columns: ArrayLike) -> ScoreSheet:
    """Two images a prompt."""
    values = {name: np.repeat(np.asarray(column, np.float64), 2) for name, column in columns.items()}
    return ScoreSheet([f"prompt {n // 2}" for n in range(len(next(iter(values.values()))))], values)


def test_a_fall_is_told_from_chance() -> None:
    noise = np.random.default_rng(0).normal(size=(3, 40))
    base = sheet(one=noise[0], other=noise[1])
    higher = sheet(one=noise[0] + 0.5, other=noise[1] + 0.5)
    judges = {"one": 1.0, "other": 1.0}
    assert change(base, higher, base, judges).high < 0
    fell = change(base, higher, sheet(one=noise[0] + 0.5, other=noise[1] - 0.9), judges)
    units = [column.std(ddof=1) for column in base.columns.values()]
    worst = -0.9 / units[1]
    assert fell.mean == pytest.approx(min((0.5 / units[0] + worst) / 2, worst + 0.5) - np.mean(0.5 / np.array(units)))
    by_chance = change(base, base, sheet(one=noise[0] + noise[2], other=noise[1] - noise[2]), judges)
    assert by_chance.low < 0 < by_chance.high
    assert change(base, base, sheet(one=noise[0] + 0.5, other=noise[1] - 9), judges | {"other": 0.0}).low > 0


def grays(folder: Path, name: str, values: list[int]) -> RankedPrompt:
    """Gray images, in the order that people prefer."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}{value}.png" for value in values]
    for file, value in zip(files, values, strict=True):
        Image.new("RGB", (8, 8), (value, value, value)).save(file)
    return RankedPrompt(name, name, tuple(files), tuple(range(1, len(values) + 1)))


def test_weights_are_twice_what_a_judge_has_over_chance() -> None:
    found = weights_of({"right": 1.0, "some": 0.6, "chance": 0.5, "wrong": 0.2})
    assert found == pytest.approx({"right": 1.0, "some": 0.2, "chance": 0.0, "wrong": 0.0})
    assert weights_of({"chance": 0.5, "wrong": 0.2}) == {"chance": 1.0, "wrong": 1.0}
    assert weights_of({"unknown": float("nan")}) == {"unknown": 1.0}  # no comparisons


def test_accuracies_are_those_of_table_1_and_scores_are_made_once(tmp_path: Path) -> None:
    rankings = [grays(tmp_path, "a", [200, 100, 50]), grays(tmp_path, "b", [40, 90])]
    judges = {
        name: partial(Brightness, weights(tmp_path / f"{name}.json", factor))
        for name, factor in {"bright": 1.0, "dark": -1.0, "ties": 0.0}.items()
    }
    cache = ScoreCache(tmp_path / "scores", "cpu")
    assert accuracies(judges, rankings, cache) == pytest.approx({"bright": 0.75, "dark": 0.25, "ties": 0.0})
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "scores").rglob("*") if file.is_file()}
    accuracies(judges, rankings, cache)
    assert {file: file.stat().st_mtime_ns for file in times} == times
