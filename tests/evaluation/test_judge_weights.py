"""A judge counts by how much better than chance it orders ranked images."""

from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from t2ifb.data.rankings import RankedPrompt
from t2ifb.evaluation.judge_weights import accuracies, weights_of
from t2ifb.evaluation.score_cache import ScoreCache
from tests.evaluation.parts import Brightness, weights


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
