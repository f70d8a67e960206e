"""Rows from scores: the same for a reward run and for table 1."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from t2ifb.data.batches import ComparisonIndex
from t2ifb.evaluation.accuracy_table import AccuracyTable, display_names, random_scores
from t2ifb.evaluation.statistics import paired_difference
from tests.data.parts import RANKS, make_split


@pytest.fixture
def index(tmp_path_factory: pytest.TempPathFactory) -> ComparisonIndex:
    rankings = make_split(tmp_path_factory.mktemp("split"), "test", RANKS)
    return ComparisonIndex.build([replace(r, prompt=f"{r.prompt} {r.prompt_id}") for r in rankings])


def test_figures_are_those_of_plain_loops(index: ComparisonIndex) -> None:
    rng = np.random.default_rng(0)
    clip, mine = rng.integers(0, 3, (2, len(index.ranks))).astype(np.float32)
    rows = {r.name: r for r in AccuracyTable(index, {"CLIP Score": clip, "mine": mine}).rows(with_tau=True)}
    right = {name: [] for name in ("CLIP Score", "mine")}
    ties, start = 0, 0
    for ranks in RANKS:
        pairs = [(i, j) for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j]]
        for name, scores in (("CLIP Score", clip), ("mine", mine)):
            own = scores[start : start + len(ranks)]
            right[name].append([bool(own[i] > own[j]) for i, j in pairs])
            ties += sum(own[i] == own[j] for i, j in pairs) if name == "mine" else 0
        start += len(ranks)
    row = rows["mine"]
    assert row.accuracy is not None
    assert row.by_prompt is not None
    assert row.accuracy.mean == pytest.approx(np.mean(sum(right["mine"], [])))
    assert row.by_prompt.mean == pytest.approx(np.mean([np.mean(r) for r in right["mine"] if r]))
    assert (row.ties, row.comparisons) == (ties, len(sum(right["mine"], [])))
    shares = [[sum(r) / max(1, len(r)) for r in right[name]] for name in ("mine", "CLIP Score")]
    assert row.against == paired_difference(*shares, weights=[len(r) for r in right["mine"]])
    assert rows["CLIP Score"].against is None
    assert row.tau is not None


def test_published_figures_stand_beside_ours_or_alone(index: ComparisonIndex) -> None:
    scores = {"CLIP Score": np.zeros(len(index.ranks))}
    rows = AccuracyTable(index, scores, {"CLIP Score": 54.82, "ImageReward": 65.14}).rows(speeds={"CLIP Score": 7.0})
    assert [(row.name, row.published) for row in rows] == [
        ("random", None), ("CLIP Score", 54.82), ("ImageReward", 65.14)
    ]  # fmt: skip
    assert [row.images_per_second for row in rows] == [None, 7.0, None]
    assert rows[1].ties == rows[1].comparisons
    assert rows[2].accuracy is None


def test_random_is_a_row_and_no_scorer_of_the_agreement(index: ComparisonIndex) -> None:
    board = AccuracyTable(index, {"a": -index.ranks, "b": index.ranks}, seed=3)
    np.testing.assert_array_equal(board.scores["random"], random_scores(len(index.ranks), 3))
    names, matrix = board.agreement()
    assert names == ["a", "b"]
    np.testing.assert_array_equal(matrix, np.eye(2))
    assert board.results["a"].accuracy.mean == 1
    assert board.taus["a"].mean == pytest.approx(1)


def test_names_are_the_scorers_own_unless_they_are_taken() -> None:
    clip, nameless = SimpleNamespace(name="CLIP Score"), SimpleNamespace(name=property(lambda self: "x"))
    assert display_names({"a": clip, "b": clip, "c": nameless, "d": object()}) == {
        "a": "CLIP Score", "b": "b", "c": "c", "d": "d"
    }  # fmt: skip
    assert display_names({"a": clip, "CLIP Score": object(), "random": object()}) == {
        "a": "CLIP Score", "CLIP Score": "CLIP Score (2)", "random": "random (2)"
    }  # fmt: skip


def test_intervals_do_not_shrink_when_a_prompt_is_asked_again_and_again(tmp_path: Path) -> None:
    once = make_split(tmp_path, "test", RANKS)
    often = [replace(ranking, prompt_id=f"{ranking.prompt_id}-{n}") for ranking in once for n in range(20)]
    rng = np.random.default_rng(0)
    scores = [rng.integers(0, 3, len(ranking.images)) for ranking in once]
    rows = [
        {row.name: row for row in AccuracyTable(ComparisonIndex.build(rankings), {"mine": values}).rows(with_tau=True)}
        for rankings, values in (
            (once, np.concatenate(scores)),
            (often, np.concatenate([each for each in scores for _ in range(20)])),
        )
    ]
    for figure in ("accuracy", "by_prompt", "tau"):
        one, other = (getattr(row["mine"], figure) for row in rows)
        assert (one.mean, one.low, one.high) == pytest.approx((other.mean, other.low, other.high))
    assert ComparisonIndex.build(often).texts == ComparisonIndex.build(once).texts
