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
    return {"completed_by": person, "result": [{"type": "pairwise", "value": value}], **more}


def test_annotations_of_label_studio() -> None:
    rows = label_studio_rows([
        task(
            answer(1, {"selected": "left"}),
            answer({"id": 2, "email": "eve@example.org"}, {"choices": ["right"]}),
            answer(3, {"selected": "left"}, was_cancelled=True),
            answer(4, {"text": ["a comment"]}),
        )
    ])  # fmt: skip
    assert [(row.text("label"), row.text("annotator")) for row in rows] == [("left", "1"), ("right", "eve@example.org")]
    assert rows[0].cells["image1"] == "img/a.png"
    assert rows[0].text("prompt") == "a cat"
    with pytest.raises(ValueError, match="entry 1: expected a Label Studio task with data and annotations"):
        label_studio_rows([Row("entry 1", {"data": "x", "annotations": []})])


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
    with pytest.raises(ValueError, match="entry 1: expected lists of one length in generations and ranking"):
        list_rows([Row("entry 1", {"generations": ["a"], "ranking": [1, 2]})], columns)
