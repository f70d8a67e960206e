"""Exports of annotation tools and nested lists of rankings, as flat rows."""

import html
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias
from urllib.parse import unquote

from t2ifb.data.preferences.labels import words_of
from t2ifb.data.tables import Row

RESPONSES = ".responses"
"""End of the column with the answers to a question in an export of Argilla."""
LOCAL_FILES = re.compile(r"^(https?://[^/]+)?/?data/local-files/\?d=")
"""Beginning of the address of a local file in Label Studio; the rest is relative to its document root."""
IMAGE_TAG = re.compile(r"<img\b[^>]*?\bsrc\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s>]+))", re.IGNORECASE)
"""An image in the HTML of an item of a list in Label Studio."""
ITEM_IMAGES = ("image", "img", "src", "url", "path")
"""Keys of an item's image, where it has no HTML."""
UNSORTED = "_"
"""Name under which Label Studio keeps the items that are in no bucket."""
Tag: TypeAlias = tuple[str, str]
"""Type and name of a tag of Label Studio's labelling interface."""
KEYS = {"pairwise": "selected", "choices": "choices"}
"""Key of the label in the value of a result, for each type of tag."""
LISTS = (("generations", "ranking"), ("images", "ranks"), ("images", "ranking"))
"""Columns with the images of a ranking and their ranks."""


def question_of(columns: Iterable[str]) -> str | None:
    """Name of the question of an Argilla export; None if the columns are not of one.

    Raises:
        ValueError: The export has several questions.
    """
    names = [column.removesuffix(RESPONSES) for column in columns if column.endswith(RESPONSES)]
    if len(names) > 1:
        raise ValueError(
            f"the export has answers to several questions ({', '.join(names)}); keep the columns of one question"
        )
    return names[0] if names else None


def argilla_rows(rows: Sequence[Row], question: str) -> list[Row]:
    """One row for each submitted answer, with the cells `label` and `annotator` and the record's own.

    Args:
        rows: Records of an export, with `<question>.responses` and perhaps `.users` and `.status`, lists of one length.
        question: Name of the question.
    """
    found: list[Row] = []
    for row in rows:
        answers, users, states = (
            _listed(row.cells.get(f"{question}{RESPONSES}{end}")) for end in ("", ".users", ".status")
        )
        own = {name: cell for name, cell in row.cells.items() if RESPONSES not in name}
        for number, answer in enumerate(answers):
            if not states or (number < len(states) and states[number] == "submitted"):
                annotator = str(users[number]) if number < len(users) else None
                found.append(Row(row.place, own | {"label": answer, "annotator": annotator}))
    return found


def label_studio_rows(rows: Sequence[Row]) -> list[Row]:
    """One row for each annotation of a Label Studio JSON export: the task's data, `label` and `annotator`.

    A task is `{"data": {"prompt", two images}, "annotations": [{"completed_by", "result": [{"type", "from_name",
    "value": …}]}]}`. The choice is the result of the tag Pairwise, `{"selected": "left"}`; without that tag, of the one
    tag Choices, `{"choices": [label]}`, or of the one whose labels name the images. Other results do not count.

    Raises:
        ValueError: A row is no task, or several tags could be the choice.
    """
    answers = [(answer, _selected(results)) for answer, results in _annotations(rows)]
    names = {name for answer, _ in answers for name in answer.cells if name != "annotator"}
    tag = _tag_of_choice([selected for _, selected in answers], names)
    return [Row(row.place, row.cells | {"label": selected[tag]}) for row, selected in answers if tag in selected]


def _annotations(rows: Sequence[Row]) -> Iterator[tuple[Row, list[Any]]]:
    """Each annotation of a Label Studio JSON export: the task's data with `annotator`, and the results.

    Raises:
        ValueError: A row is no task.
    """
    for row in rows:
        data, annotations = row.cells.get("data"), row.cells.get("annotations")
        if not isinstance(data, dict) or not isinstance(annotations, list):
            raise ValueError(f"{row.place}: expected a Label Studio task with data and annotations")
        cells = {str(name).lower(): _local(cell) for name, cell in data.items()}
        for annotation in annotations:
            if isinstance(annotation, dict) and not annotation.get("was_cancelled"):
                yield Row(row.place, cells | {"annotator": _person(annotation)}), _listed(annotation.get("result"))


def _local(cell: Any) -> Any:
    """The cell; of the address of a local file its name."""
    if isinstance(cell, str) and (found := LOCAL_FILES.match(cell)):
        return unquote(cell[found.end() :])
    return cell


def ranker_rows(rows: Sequence[Row]) -> list[Row]:
    """One row for each image that the tag Ranker of a Label Studio JSON export ranks; none without that tag.

    The tag's result is `{"type": "ranker", "value": {"ranker": {NAME: [id, …]}}}`, the best item first. The items are
    in the task's data, a list of `{"id": …, "html": "<img src=…>"}` or of `{"id": …, "image": …}`. Rows have the
    task's data and `prompt_id`, `annotator`, `image` and `rank`.

    Raises:
        ValueError: A row is no task, the items are in buckets, which have no order, or an item or its image is missing.
    """
    found: list[Row] = []
    tags: set[str] = set()
    tasks = {row.place: row.text("id") or row.place for row in rows}
    for answer, results in _annotations(rows):
        for result in results:
            if not isinstance(result, dict) or result.get("type") != "ranker":
                continue
            tags.add(str(result.get("from_name")))
            images = _item_images(answer)
            for rank, item in enumerate(_ranked_items(answer.place, result.get("value")), 1):
                if item not in images:
                    raise ValueError(f"{answer.place}: the Ranker's item {item!r} is not in the task's data")
                if images[item] is None:
                    raise ValueError(f"{answer.place}: item {item!r} has no image; expected html with an img tag")
                ranked = {"prompt_id": tasks[answer.place], "image": images[item], "rank": rank}
                found.append(Row(answer.place, answer.cells | ranked))
    if len(tags) > 1:
        raise ValueError(f"several tags Ranker of Label Studio ({', '.join(sorted(tags))}); keep one in the export")
    return found


def _ranked_items(place: str, value: Any) -> list[str]:
    """Identifiers of the items in the order of a Ranker's result."""
    lists = value.get("ranker") if isinstance(value, dict) else None
    if not isinstance(lists, dict) or not all(isinstance(each, list) for each in lists.values()):
        raise ValueError(f'{place}: expected {{"ranker": {{name: [identifiers]}}}} as the value of the Ranker')
    if len(buckets := [name for name in lists if name != UNSORTED]) > 1:
        raise ValueError(
            f"{place}: the Ranker has the buckets {', '.join(buckets)}, which have no order; use it without buckets"
        )
    return [str(item) for item in lists[buckets[0]]] if buckets else []


def _item_images(task: Row) -> dict[str, str | None]:
    """Image of each item in the lists of a task's data."""
    found: dict[str, str | None] = {}
    for items in task.cells.values():
        for item in _listed(items):
            if isinstance(item, dict) and "id" in item:
                tag = IMAGE_TAG.search(str(item.get("html") or ""))
                named = next((str(item[key]) for key in ITEM_IMAGES if item.get(key)), None)
                name = html.unescape(next(filter(None, tag.groups()), "")) if tag else named
                found[str(item["id"])] = _local(name) if name else None
    return found


def _selected(results: Any) -> dict[Tag, str]:
    """The label that each tag of an annotation has."""
    found: dict[Tag, str] = {}
    for result in _listed(results):
        kind = str(result.get("type")) if isinstance(result, dict) else ""
        value = result.get("value") if kind in KEYS else None
        label = value.get(KEYS[kind]) if isinstance(value, dict) else None
        if isinstance(label, list):
            label = label[0] if len(label) == 1 else None
        if label is not None:
            found[kind, str(result.get("from_name"))] = str(label)
    return found


def _tag_of_choice(answers: Sequence[dict[Tag, str]], names: set[str]) -> Tag:
    """The tag whose labels say which image is preferred.

    Args:
        answers: Label of each tag, for each annotation.
        names: Names of the images, among others.
    """
    tags = sorted({tag for answer in answers for tag in answer})
    possible = [tag for tag in tags if tag[0] == "pairwise"] or tags
    if len(possible) > 1:
        words = words_of()
        known = names | words.keys()
        labels = {tag: {answer[tag].strip().lower() for answer in answers if tag in answer} for tag in possible}
        sides = {tag for tag in possible if any(words.get(label) != "tie" for label in labels[tag])}
        named = [tag for tag in possible if tag[0] == "choices" and tag in sides and labels[tag] <= known]
        if len(named) != 1:
            listed = ", ".join(name for _, name in possible)
            raise ValueError(f"several tags of Label Studio could be the choice ({listed}); keep one in the export")
        possible = named
    return possible[0] if possible else ("", "")


def _person(annotation: dict[str, Any]) -> str | None:
    person = annotation.get("completed_by")
    if isinstance(person, dict):
        person = person.get("email", person.get("id"))
    return None if person is None else str(person)


def list_columns(columns: Iterable[str]) -> tuple[str, str] | None:
    """Columns with lists of images and ranks; None if there are none."""
    there = set(columns)
    return next((pair for pair in LISTS if set(pair) <= there), None)


def list_rows(rows: Sequence[Row], columns: tuple[str, str]) -> list[Row]:
    """One row for each image of rows with lists of images and ranks.

    The last row of an annotator about the same images of a `prompt_id` counts, and a row without ranks is no ranking:
    so an answer can be replaced or withdrawn in a file that only grows. In the file of `t2ifb.annotate`, which has the
    columns `answer` and `models`, the `prompt_id` stands for the images, wherever they lie.

    Raises:
        ValueError: A row has no such lists of one length.
    """
    latest: dict[object, Row] = {}
    for number, row in enumerate(rows):
        files = [] if {"answer", "models"} <= row.cells.keys() else _listed(row.cells.get(columns[0]))
        shown = frozenset(map(str, files))
        key = (row.text("prompt_id"), row.text("annotator"), shown)
        latest.pop(key, None)
        latest[key if all(key[:2]) else number] = row
    found: list[Row] = []
    lists: dict[tuple[str, str], list[frozenset[str]]] = {}
    for row in latest.values():
        images, ranks = (row.cells.get(column) for column in columns)
        if ranks is None:
            continue
        if not isinstance(images, list) or not isinstance(ranks, list) or len(images) != len(ranks):
            raise ValueError(f"{row.place}: expected lists of one length in {' and '.join(columns)}")
        own = {name: cell for name, cell in row.cells.items() if name not in columns}
        name, shown = row.text("prompt_id") or row.text("id") or row.place, frozenset(map(str, images))
        # Lists of different images are different rankings, also under one name.
        known = lists.setdefault((name, row.text("annotator")), [])
        if shown not in known:
            known.append(shown)
        number = known.index(shown)
        own["prompt_id"] = f"{name}, list {number + 1}" if number else name
        found += [Row(row.place, own | {"image": i, "rank": rank}) for i, rank in zip(images, ranks, strict=True)]
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
