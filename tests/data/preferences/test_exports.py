"""Exports of annotation tools and lists of rankings become flat rows."""

from typing import Any

import pytest

from t2ifb.data.preferences.exports import argilla_rows, label_studio_rows, list_columns, list_rows, question_of
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
    assert [row.cells["image"] for row in list_rows(other, ("images", "ranks"))] == ["a", "c", "b", "a"]
    with pytest.raises(ValueError, match="entry 1: expected lists of one length in generations and ranking"):
        list_rows([Row("entry 1", {"generations": ["a"], "ranking": [1, 2]})], columns)
