"""Answers of annotators on disk, appended one by one, as a table that `dataset=own_rankings` reads."""

import json
import logging
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from filelock import FileLock, Timeout

from t2ifb.annotation.items import Item
from t2ifb.utils.files import make_folder, storage_errors

logger = logging.getLogger(__name__)

FILE = "rankings.jsonl"
Kind: TypeAlias = Literal["ranks", "skip", "all bad", "undone"]
KINDS: tuple[Kind, ...] = ("ranks", "skip", "all bad", "undone")
ASPECTS = ("overall", "alignment", "fidelity")
"""What images are rated by, from 1 to 7, as in ImageRewardDB."""


@dataclass(frozen=True)
class Answer:
    """One answer of one annotator. A later answer of the same annotator to the same question replaces it.

    Attributes:
        item: Key of the question.
        annotator: Name.
        kind: `ranks`; `skip`; `all bad`, which has no ranks; or `undone`, which withdraws the answer before.
        ranks: Rank of each image, in the order of the item; 1 is best, ties allowed. Empty for other kinds.
        ratings: For each image, ratings from 1 to 7 by aspect; empty if none were given.
        seconds: Time that the annotator took.
    """

    item: str
    annotator: str
    kind: Kind
    ranks: tuple[int, ...] = ()
    ratings: tuple[dict[str, int], ...] = ()
    seconds: float = 0.0

    @classmethod
    def checked(cls, item: Item, annotator: Any, kind: Any, ranks: Any, ratings: Any, seconds: Any) -> Self:
        """An answer from untrusted values.

        Raises:
            ValueError: A value is not what it must be.
        """
        count = len(item.images)
        if kind not in KINDS:
            raise ValueError(f"answer must be one of {', '.join(KINDS)}")
        given, rated = ([] if values is None else values for values in (ranks, ratings))
        if not isinstance(given, list) or not isinstance(rated, list):
            raise ValueError(f"ranks and ratings must be lists with a value for each of {count} images")
        if kind == "ranks" and (len(given) != count or not all(_whole(rank, 1, count) for rank in given)):
            raise ValueError(f"ranks must be {count} numbers from 1 to {count}")
        if rated and (len(rated) != count or not all(isinstance(each, dict) for each in rated)):
            raise ValueError(f"ratings must be given for each of {count} images")
        if not all(aspect in ASPECTS and _whole(value, 1, 7) for each in rated for aspect, value in each.items()):
            raise ValueError(f"ratings must be from 1 to 7, by {', '.join(ASPECTS)}")
        took = float(seconds) if isinstance(seconds, (int, float)) and 0 <= seconds < 1e6 else 0.0
        return cls(item.key, name_of(annotator), kind, tuple(given) if kind == "ranks" else (), tuple(rated), took)


def name_of(annotator: Any) -> str:
    """A valid name.

    Raises:
        ValueError: It is empty, longer than 60 characters, or has control characters.
    """
    text = " ".join(annotator.split()) if isinstance(annotator, str) else ""
    if not 1 <= len(text) <= 60 or not text.isprintable():
        raise ValueError("the annotator's name must have 1 to 60 printable characters")
    return text


class AnswerLog:
    """Answers in `rankings.jsonl`: one JSON object per line, appended and synced before `append` returns.

    If images were moved or renamed since, the valid answers about them are appended again with the new names.

    A line has the columns `prompt_id`, `prompt`, `images` (relative to the file), `models`, `hashes` (of the images),
    `ranks` (null for an answer without), `annotator`, `answer`, `ratings` and `seconds`. A line that a killed process
    did not finish is removed when the file is opened again.
    """

    def __init__(self, folder: Path, items: Sequence[Item]) -> None:
        """Open or create the file, and read the answers about `items`.

        Raises:
            ValueError: Another process has it open.
            StorageError: The folder cannot be written to.
        """
        self.folder, self.path = make_folder(folder), folder / FILE
        self.items = {item.key: item for item in items}
        self._lock = FileLock(folder / ".lock", timeout=0)
        self._guard = threading.Lock()
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ValueError(f"another process collects answers in {folder}; stop it or give another output") from error
        self.answers: list[Answer] = []
        moved: set[tuple[str, str]] = set()
        for row in read_lines(self.path):
            if (answer := self._answer(row)) is not None:
                self.answers.append(answer)
                same = set(row["images"]) == set(self._names(self.items[answer.item]))
                (moved.discard if same else moved.add)((answer.annotator, answer.item))
        for key, answer in self.current().items():
            if key in moved:
                self.append(answer)

    def close(self) -> None:
        """Let another process open the file."""
        self._lock.release()

    def append(self, answer: Answer) -> None:
        """Write an answer. It is on disk when this returns.

        Raises:
            StorageError: The disk is full or the folder is read-only.
        """
        item = self.items[answer.item]
        row = {
            "prompt_id": item.key,
            "prompt": item.prompt,
            "images": self._names(item),
            "models": list(item.models),
            "hashes": list(item.hashes),
            "ranks": list(answer.ranks) or None,
            "annotator": answer.annotator,
            "answer": answer.kind,
            "ratings": list(answer.ratings) or None,
            "seconds": round(answer.seconds, 1),
        }
        line = json.dumps(row, ensure_ascii=True).encode() + b"\n"
        with self._guard, storage_errors(self.folder):
            with self.path.open("ab", buffering=0) as file:
                _append(file, line)
            self.answers.append(answer)

    def current(self) -> dict[tuple[str, str], Answer]:
        """The valid answer by annotator and question, in the order in which they were given."""
        found: dict[tuple[str, str], Answer] = {}
        for answer in self.answers:
            found.pop((answer.annotator, answer.item), None)
            if answer.kind != "undone":
                found[answer.annotator, answer.item] = answer
        return found

    def _names(self, item: Item) -> list[str]:
        """The item's images, relative to the file."""
        folder = self.folder.resolve()
        return [os.path.relpath(_place(image), folder).replace(os.sep, "/") for image in item.images]

    def _answer(self, row: dict[str, Any]) -> Answer | None:
        """An answer from a line; None if it is about another question."""
        item = self.items.get(str(row.get("prompt_id")))
        if item is None:
            return None
        values = (row.get(name) for name in ("annotator", "answer", "ranks", "ratings", "seconds"))
        answer = Answer.checked(item, *values)
        moved = self._places(item, row)
        ranks = tuple(answer.ranks[place] for place in moved) if answer.ranks else ()
        ratings = tuple(answer.ratings[place] for place in moved) if answer.ratings else ()
        return replace(answer, ranks=ranks, ratings=ratings)

    def _places(self, item: Item, row: dict[str, Any]) -> list[int]:
        """Place in a line of each image of the question; the order of images depends on the seed.

        Images correspond by their content, since files may have been moved or renamed; equal ones by model and path.

        Raises:
            ValueError: The line has no such images.
        """
        count, columns = len(item.images), [row.get(name) or [] for name in ("hashes", "models", "images")]
        if not all(_texts(column, count) for column in columns) or sorted(columns[0]) != sorted(item.hashes):
            raise ValueError(
                f"{self.path}, question {item.key}: expected {count} images, their models and their hashes"
            )
        stored = [*zip(*columns, strict=True)]
        asked = [*zip(item.hashes, item.models, self._names(item), strict=True)]
        places = [0] * count
        for old, new in zip(_sorted_places(stored), _sorted_places(asked), strict=True):
            places[new] = old
        return places


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read all lines. An unfinished last one is removed; a whole one that only lacks its end of line gets it.

    Raises:
        ValueError: A finished line is not a JSON object.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole, newline, rest = content.rpartition(b"\n")
    if rest and _is_object(rest):
        with path.open("ab") as file:
            file.write(b"\n")
        whole = content
    elif rest:
        logger.warning("%s: removed an unfinished last line of %d bytes", path, len(rest))
        with path.open("r+b") as file:
            file.truncate(len(whole) + len(newline))
    rows = []
    for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}); repair or remove the line") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected an object, found {type(row).__name__}")
        rows.append(row)
    return rows


def _is_object(line: bytes) -> bool:
    with suppress(ValueError, RecursionError):
        return isinstance(json.loads(line), dict)
    return False


def _append(file: FileIO, line: bytes) -> None:
    """Write and sync a line, or leave the file as it was.

    Raises:
        OSError: The disk is full.
    """
    length = file.seek(0, os.SEEK_END)
    try:
        rest = memoryview(line)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except OSError:
        file.truncate(length)
        os.fsync(file.fileno())
        raise


def _place(image: Path) -> Path:
    """Absolute path of an image in its real folder."""
    return image.parent.resolve() / image.name


def _texts(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(isinstance(each, str) for each in value)


def _sorted_places(images: Sequence[tuple[str, str, str]]) -> list[int]:
    return sorted(range(len(images)), key=images.__getitem__)


def _whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high
