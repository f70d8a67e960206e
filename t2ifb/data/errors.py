"""Bad records in data: description, reporting and handling."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

logger = logging.getLogger(__name__)

Record = TypeVar("Record")
OnError: TypeAlias = Literal["error", "skip"]
SHOWN_ERRORS = 20
"""Number of distinct errors that a message lists; the rest is counted."""


@dataclass(frozen=True)
class BadRecord:
    """One error in the data: its place and description."""

    place: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


def brief(text: str, most: int = 80) -> str:
    """A text on one line with at most `most` characters, for messages."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


class BadRecords(ValueError):
    """Some records are bad and `on_error` is `error`.

    Attributes:
        place: Source of the records.
    """

    def __init__(self, place: str, count: str, noun: str, lines: str, skip: str = "on_error=skip") -> None:
        """Compose the message. `skip` is the setting that drops bad records, empty if they cannot be dropped."""
        self.place = place
        self._rest = count, noun, lines
        advice = f"Correct them, or set {skip} to drop these {noun}" if skip else "Correct them"
        super().__init__(f"{place} has {count}. {advice}:\n{lines}")

    def __reduce__(self) -> tuple[type, tuple[str, ...]]:
        """Make the exception picklable, with its composed message."""
        return ValueError, (str(self),)

    def advising(self, skip: str) -> "BadRecords":
        """The same error that names another setting for dropping records."""
        return type(self)(self.place, *self._rest, skip)


def raise_or_skip(
    errors: Sequence[BadRecord], on_error: OnError, place: str, dropped: int, total: int, noun: str = "rankings"
) -> None:
    """Raise an error or report the number of dropped records, as `on_error` says. No effect without errors.

    Args:
        errors: All errors found.
        on_error: `error` or `skip`.
        place: Source of the records.
        dropped: Number of records with errors.
        total: Number of records.
        noun: Plural noun for a record.

    Raises:
        BadRecords: Errors were found and `on_error` is `error`.
        ValueError: `on_error` is neither `error` nor `skip`.
    """
    if on_error not in ("error", "skip"):
        raise ValueError(f"on_error must be error or skip, not {on_error!r}")
    if not errors:
        return
    count = f"{len(errors)} error{'s' * (len(errors) > 1)}"
    if on_error == "error":
        raise BadRecords(place, f"{count} in {dropped} of {total} {noun}", noun, listing(errors))
    logger.warning("%s: dropped %d of %d %s for %s:\n%s", place, dropped, total, noun, count, listing(errors))


def listing(errors: Sequence[BadRecord]) -> str:
    """One line per kind of error: first place, number of further places, description."""
    places: dict[str, list[str]] = {}
    for error in errors:
        places.setdefault(error.what, []).append(error.place)
    lines = []
    for what, found in places.items():
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        lines.append(f"  {found[0]}{more}: {what}")
    if left := sum(map(len, list(places.values())[SHOWN_ERRORS:])):
        lines[SHOWN_ERRORS:] = [f"  and {left} more"]
    return "\n".join(lines)


def parse_entries(
    entries: Iterable[tuple[int, Any]], parse: Callable[[int, dict[str, Any]], Record], place: str
) -> tuple[list[Record], list[BadRecord]]:
    """Parse the objects of a JSON list into records.

    Args:
        entries: Pairs of index and entry.
        parse: Makes a record from an entry's index and content. It raises `TypeError`, `ValueError` or `KeyError` with
            the description of an error.
        place: Source of the entries.

    Returns:
        The parsed records, and the errors of the other entries.
    """
    records: list[Record] = []
    errors: list[BadRecord] = []
    for number, entry in entries:
        try:
            if not isinstance(entry, dict):
                raise TypeError(f"expected an object, got {type(entry).__name__}")
            records.append(parse(number, entry))
        except (TypeError, ValueError, KeyError) as error:
            what = f"no key {error}" if isinstance(error, KeyError) else str(error)
            errors.append(BadRecord(f"{place}, entry {number}", what))
    return records, errors


def check_text(value: Any, name: str) -> str:
    """Check that a value is a text, and return it.

    Raises:
        TypeError: The value is not a text.
    """
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be a text")
    return value


def check_paths(value: Any, name: str) -> list[str]:
    """Check that a value is a list of path texts, and return it.

    Raises:
        TypeError: The value is not a list of texts.
    """
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"`{name}` must be a list of relative paths")
    return value


def check_numbers(value: Any, name: str) -> list[int]:
    """Check that a value is a list of integers, and return it.

    Raises:
        TypeError: The value is not a list of integers.
    """
    if not isinstance(value, list) or not all(type(number) is int for number in value):
        raise TypeError(f"`{name}` must be a list of integers")
    return value
