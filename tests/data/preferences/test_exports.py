"""Exports of annotation tools and lists of rankings become flat rows."""

from typing import Any

import pytest

from t2ifb.data.preferences.exports import (
    argilla_rows,
    label_studio_rows,
    list_columns,
    list_rows,
    question_of,
    ranker_rows,
)
from t2ifb.data.tables import Row

RECORD = {
    "prompt": "a cat",
    "images.image_1": "a.png",
    "images.image_2": "b.png",
    "preference.responses": ["image_1", "both_bad", "image_2"],
    "preference.responses.users": ["ada", "bob", "eve"],
    "preference.responses.status": ["submitted", "submitted", "discarded"],
}


def test_submitted_answers_of_argilla() -> None:
    assert question_of(RECORD) == "preference"
    rows = argilla_rows([Row("row 0", RECORD), Row("row 1", RECORD | {"preference.responses": None})], "preference")
    assert [(row.place, row.text("label"), row.text("annotator")) for row in rows] == [
        ("row 0", "image_1", "ada"),
        ("row 0", "both_bad", "bob"),
    ]
    assert rows[0].cells["images.image_2"] == "b.png"
    assert question_of(["prompt", "image"]) is None
    with pytest.raises(ValueError, match=r"several questions \(preference, style\)"):
        question_of([*RECORD, "style.responses"])


def task(*annotations: Any, **data: str) -> Row:
    images = {"image1": "/data/local-files/?d=img/a.png", "image2": "img/b.png"}
    return Row(
        "e.json, entry 0", {"id": 7, "data": {"Prompt": "a cat", **images, **data}, "annotations": [*annotations]}
    )


def answer(person: Any, value: dict[str, Any], **more: Any) -> dict[str, Any]:
    kind = next((kind for key, kind in (("selected", "pairwise"), ("text", "textarea")) if key in value), "choices")
    return {"completed_by": person, "result": [{"type": kind, "from_name": kind, "value": value}], **more}


def choices(**selected: str) -> dict[str, Any]:
    """An annotation with the labels of several tags Choices by their names."""
    results = [{"type": "choices", "from_name": n, "value": {"choices": [label]}} for n, label in selected.items()]
    return {"completed_by": 1, "result": results}


def test_annotations_of_label_studio() -> None:
    rows = label_studio_rows([
        task(
            answer(1, {"selected": "left"}),
            answer({"id": 2, "email": "eve@example.org"}, {"selected": "right"}),
            answer(3, {"selected": "left"}, was_cancelled=True),
            answer(4, {"text": ["a comment"]}),
        )
    ])  # fmt: skip
    assert [(row.text("label"), row.text("annotator")) for row in rows] == [("left", "1"), ("right", "eve@example.org")]
    assert rows[0].cells["image1"] == "img/a.png"
    assert rows[0].text("prompt") == "a cat"
    with pytest.raises(ValueError, match="entry 1: expected a Label Studio task with data and annotations"):
        label_studio_rows([Row("entry 1", {"data": "x", "annotations": []})])


def test_other_tags_of_label_studio_are_no_choice() -> None:
    both = answer(1, {"selected": "left"})
    both["result"] += choices(quality="bad", side="right")["result"]
    assert [row.text("label") for row in label_studio_rows([task(both)])] == ["left"]
    one, two = choices(style="photo", side="right", quality="bad"), choices(style="left", side="image1")
    rows = label_studio_rows([task(one, two)])
    assert [row.text("label") for row in rows] == ["right", "image1"]
    assert [row.text("label") for row in label_studio_rows([task(choices(best="B!"))])] == ["B!"]
    with pytest.raises(ValueError, match=r"several tags of Label Studio could be the choice \(one, two\)"):
        label_studio_rows([task(choices(one="left", two="right"))])


def ranking(person: int, lists: dict[str, list[str]], tag: str = "rank") -> dict[str, Any]:
    """An annotation by the tag Ranker."""
    result = {"type": "ranker", "from_name": tag, "to_name": "images", "value": {"ranker": lists}}
    return {"completed_by": person, "result": [result]}


def ranked_task(*annotations: Any) -> Row:
    html = '<p>first</p><img class="x" src="http://localhost:8080/data/local-files/?d=img/a%20b.png&amp;v=1">'
    items = [
        {"id": "a", "html": html},
        {"id": "b", "image": "b.png"},
        {"id": 3, "html": "<IMG src=c.png>"},
        {"id": "x"},
    ]
    return Row("e.json, entry 4", {"id": 7, "data": {"Prompt": "a cat", "items": items}, "annotations": [*annotations]})


def test_rankings_of_label_studio() -> None:
    skipped = {**ranking(3, {"rank": ["a", "b"]}), "was_cancelled": True}
    rows = ranker_rows(
        [ranked_task(ranking(1, {"rank": ["b", "a"]}), ranking(2, {"best": ["3"], "_": ["a"]}), skipped)]
    )
    assert [tuple(row.text(name) for name in ("image", "rank", "annotator")) for row in rows] == [
        ("b.png", "1", "1"),
        ("img/a b.png&v=1", "2", "1"),
        ("c.png", "1", "2"),
    ]
    assert {(row.text("prompt"), row.text("prompt_id")) for row in rows} == {("a cat", "7")}
    assert ranker_rows([task(answer(1, {"selected": "left"}))]) == []


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([ranking(1, {"good": ["a"], "bad": ["b"]})], r"entry 4: the Ranker has the buckets good, bad, which have no"),
        ([ranking(1, {"rank": ["z"]})], r"entry 4: the Ranker's item 'z' is not in the task's data"),
        ([ranking(1, {"rank": ["x"]})], r"entry 4: item 'x' has no image"),
        ([ranking(1, {"rank": "a"})], r"entry 4: expected .* as the value of the Ranker"),  # type: ignore[dict-item]
        ([ranking(1, {"rank": ["a"]}), ranking(1, {"rank": ["b"]}, "two")], r"several tags Ranker .*rank, two"),
    ],
)
def test_rankings_of_label_studio_that_cannot_be_read(annotations: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ranker_rows([ranked_task(*annotations)])


def test_lists_of_images_and_ranks() -> None:
    columns = list_columns(["id", "prompt", "generations", "ranking"])
    assert columns == ("generations", "ranking")
    assert list_columns(["prompt", "image", "rank"]) is None
    rows = list_rows([Row("entry 0", {"id": 3, "prompt": "x", "generations": ["a", "b"], "ranking": [2, 1]})], columns)
    assert [(row.cells["image"], row.cells["rank"], row.text("prompt_id")) for row in rows] == [
        ("a", 2, "3"),
        ("b", 1, "3"),
    ]
    given = [("ada", [1, 2]), ("bob", [1, 2]), ("ada", None), ("eve", [1, 1]), ("bob", [2, 1])]
    cells = [{"prompt_id": "0", "images": ["a", "b"], "ranks": ranks, "annotator": who} for who, ranks in given]
    again = [Row(str(number), each) for number, each in enumerate(cells)]
    kept = [(row.text("annotator"), row.cells["rank"]) for row in list_rows(again, ("images", "ranks"))]
    assert kept == [("eve", 1), ("eve", 1), ("bob", 2), ("bob", 1)]
    several = (["a", "b"], ["a", "c"], ["b", "a"])
    other = [Row(str(n), cells[0] | {"images": images}) for n, images in enumerate(several)]
    apart = [(row.cells["image"], row.text("prompt_id")) for row in list_rows(other, ("images", "ranks"))]
    assert apart == [("a", "0, list 2"), ("c", "0, list 2"), ("b", "0"), ("a", "0")] or apart == [
        ("a", "0"), ("c", "0"), ("b", "0, list 2"), ("a", "0, list 2")
    ]  # fmt: skip
    with pytest.raises(ValueError, match="entry 1: expected lists of one length in generations and ranking"):
        list_rows([Row("entry 1", {"generations": ["a"], "ranking": [1, 2]})], columns)
