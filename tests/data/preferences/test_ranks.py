"""Tables with a row per image, ranked by several annotators."""

from pathlib import Path

from t2ifb.data.preferences.ranks import group_rows
from t2ifb.data.tables import Row
from tests.data.parts import encoded_picture


def test_each_annotator_has_a_ranking(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(encoded_picture(ord(name), "PNG"))
    answers = [("ada", "a", 1), ("ada", "b", 2), ("bob", "a", "2.0"), ("bob", "b", 1), ("", "a", 1), ("", "b", 1)]
    rows = [
        Row(f"line {number}", {"prompt": "x", "image": f"{image}.png", "rank": rank, "annotator": person})
        for number, (person, image, rank) in enumerate(answers)
    ]
    rankings, errors, total = group_rows(rows, tmp_path)
    assert [(r.prompt_id, r.ranks) for r in rankings] == [("x, ada", (1, 2)), ("x, bob", (2, 1)), ("x", (1, 1))]
    assert (errors, total) == ([], 3)


def test_a_tie_of_an_annotator_is_half_a_vote_each(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(encoded_picture(ord(name), "PNG"))
    answers = [("ada", "ab", (1, 1)), ("bob", "ab", (2, 1)), ("", "ab", (1, 1)), ("eve", "abc", (1, 1, 2))]
    rows = [
        Row(f"{person} {image}", {"prompt": "x", "image": f"{image}.png", "rank": rank, "annotator": person})
        for person, images, ranks in answers
        for image, rank in zip(images, ranks, strict=True)
    ]
    judged = [[(j.share, j.weight) for j in ranking.judgements()] for ranking in group_rows(rows, tmp_path)[0]]
    assert judged == [[(0.5, 1)], [(1, 1)], [], [(1, 1), (1, 1)]]
