"""Rows of pairs, ranks of votes, and answers of several annotators."""

from pathlib import Path
from typing import Any

import pytest

from t2ifb.data.preferences.columns import pair_columns
from t2ifb.data.preferences.pairs import join_annotators, pair_rows, rank_pairs, ranks_of
from t2ifb.data.rankings import RankedPrompt, Votes
from t2ifb.data.storage.columnar import ColumnImage
from t2ifb.data.tables import Row
from tests.data.parts import encoded_picture

A, B, C = (Path(name) for name in "abc")


def rows(**columns: list[Any]) -> list[Row]:
    names = list(columns)
    cells = [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [Row(f"t.csv, line {number + 2}", each) for number, each in enumerate(cells)]


def votes_of(**columns: list[Any]) -> list[Any]:
    table = rows(prompt=["a cat"] * len(next(iter(columns.values()))), **columns)
    form = pair_columns(table[0].cells)
    assert form is not None
    return [row.cells.get("problem") or row.cells["votes"] for row in pair_rows(table, form)[0]]


def test_votes_of_every_kind_of_choice() -> None:
    images = {"image1": ["a", "a"], "image2": ["b", "b"]}
    assert votes_of(**images, label=["left", "tie"]) == [(1, 0), (0.5, 0.5)]
    assert votes_of(**images, votes_image1=[3, 0], votes_image2=["1", 2]) == [(3, 1), (0, 2)]
    assert votes_of(**images, label=["a", "b"], weight=[5, "2"]) == [(5, 0), (0, 2)]
    assert votes_of(**images, pref_0=[6, 1], pref_1=[5, "0"]) == [(6, 5), (1, 0)]
    assert votes_of(**images, pref_0=[1, -2], pref_1=["-1", 2]) == [(1, 0), (0, 1)]
    assert votes_of(**images, pref_0=[1, 0.5], pref_1=[0, 0.5]) == [(1, 0), (0.5, 0.5)]
    assert votes_of(chosen=["a"], rejected=["b"]) == [(1, 0)]
    assert votes_of(path1=["a"], path2=["b"], confidence=[0.75]) == [(0.75, 0.25)]
    assert votes_of(path1=["a"], path2=["b"], choice_dist=[[12, 7]], confidence=[0.99]) == [(12, 7)]
    assert votes_of(**images, label=["b"] * 2, confidence=[0.9, None])[0] == pytest.approx((0.1, 0.9))


def test_rows_without_a_choice_are_counted() -> None:
    table = rows(caption=["x"] * 3, jpg_0=["a"] * 3, jpg_1=["b"] * 3, label_0=[1, 0.5, 0], label_1=[0, 0.5, 0],
                 has_label=[True, False, True])  # fmt: skip
    form = pair_columns(table[0].cells)
    assert form is not None
    kept, empty, _ = pair_rows(table, form)
    assert ([row.cells["votes"] for row in kept], empty) == ([(1, 0)], 2)


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"label": ["c"]}, "unknown label 'c'"),
        ({"choice_dist": [[1, 2, 3]]}, "choice_dist must be a list of two numbers"),
        ({"label": ["a"], "confidence": [0.2]}, "confidence must be from 0.5 to 1, found 0.2"),
        ({"label": ["a"], "weight": [0]}, "weight must be above 0"),
        ({"label": ["a"], "weight": ["nan"]}, "weight must be above 0 and finite, found nan"),
        ({"label": ["a"], "weight": [float("inf")]}, "weight must be above 0 and finite, found inf"),
        ({"label": ["a"], "weight": ["many"]}, "weight must be a number, found 'many'"),
    ],
)
def test_a_bad_choice_is_a_problem_of_its_row(columns: dict[str, list[Any]], problem: str) -> None:
    (found,) = votes_of(image_a=["a"], image_b=["b"], **columns)
    assert problem in found


def test_pairs_become_rankings_and_errors(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(encoded_picture(ord(name), "PNG"))
    table = rows(prompt=["x", "x", "", "x", "x"], first=["a.png"] * 5, second=["b.png", "b.png", "b.png", "a.png", "c"],
                 votes=[(0.0, 1.0), (2.0, 1.0), (1.0, 0.0), (1.0, 0.0), (1.0, 0.0)])  # fmt: skip
    rankings, errors = rank_pairs(table, tmp_path)
    assert [(r.ranks, r.votes) for r in rankings] == [((2, 1), ()), ((1, 2), (Votes(0, 1, 2, 1),))]
    assert rankings[0].images == (tmp_path / "a.png", tmp_path / "b.png")
    assert len({r.prompt_id for r in rankings}) == 2
    whats = {error.place: error.what for error in errors}
    assert whats["t.csv, line 4"] == "empty prompt"
    assert whats["t.csv, line 5"] == "the pair has the same image twice"
    assert whats["t.csv, line 6"].startswith("image c")


def test_ranks_follow_the_shares_of_the_votes() -> None:
    assert ranks_of([Votes(0, 1, 1, 3), Votes(1, 2, 2, 2), Votes(0, 2, 0, 1)], 3) == (3, 2, 1)
    assert ranks_of([Votes(0, 1, 1, 1)], 2) == (1, 1)


def test_answers_of_annotators_are_added_up_and_contradictions_counted() -> None:
    answers = [
        RankedPrompt("0, ada", "cat", (A, B, C), (1, 2, 3)),
        RankedPrompt("1", "dog", (A, B), (1, 2)),
        RankedPrompt("0, bob", "cat", (C, A, B), (2, 1, 2)),  # a before b and c; b and c equal
        RankedPrompt("0, eve", "cat", (B, A, C), (1, 2, 3)),
    ]
    joined, repeated, contradicting = join_annotators(answers, list)
    assert [r.prompt_id for r in joined] == ["0, ada", "1"]
    assert joined[0].votes == (Votes(0, 1, 2, 1), Votes(0, 2, 3, 0), Votes(1, 2, 2.5, 0.5))
    assert joined[0].ranks == (1, 2, 3)
    assert (repeated, contradicting) == (3, 1)
    assert joined[1] == answers[1]


def test_equal_answers_are_one_comparison_of_more_weight() -> None:
    same = RankedPrompt("0", "cat", (A, B), (2, 1))
    other = RankedPrompt("1", "cat", (B, A), (1, 2))
    ((joined,), repeated, contradicting) = join_annotators([same, other], list)
    assert [(j.better, j.worse, j.share, j.weight) for j in joined.judgements()] == [(1, 0, 1, 2)]
    assert (repeated, contradicting) == (1, 0)


def test_equal_images_in_a_table_are_the_same_image() -> None:
    """A table with embedded images has them in each row again."""

    def image(row: int, column: str) -> ColumnImage:
        return ColumnImage("t", row, column, f"row {row}", Path(), None)

    rankings = [RankedPrompt(str(n), "cat", (image(n, "a"), image(n, "b")), (1 + n, 2 - n)) for n in (0, 1)]
    alone = RankedPrompt("2", "dog", (image(2, "a"), image(2, "b")), (1, 2))
    asked: list[Any] = []

    def content(images: Any) -> list[str]:
        asked.extend(images)
        return [each.column for each in images]

    joined, repeated, contradicting = join_annotators([*rankings, alone], content)
    assert [ranking.images for ranking in joined] == [rankings[0].images, alone.images]
    assert (joined[0].votes, repeated, contradicting) == ((Votes(0, 1, 1, 1),), 1, 1)
    assert not {*alone.images} & {*asked}  # nothing is read without need
