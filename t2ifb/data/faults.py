"""What can be wrong with data, and what is done about it."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

logger = logging.getLogger(__name__)

Record = TypeVar("Record")
OnFault: TypeAlias = Literal["error", "skip"]
SHOWN_FAULTS = 20
"""Different faults that a message spells out; the rest is counted."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with the data: where, and what."""

    place: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


def brief(text: str, most: int = 80) -> str:
    """A text on one line and of at most `most` letters, for messages."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


class BadRecords(ValueError):
    """Some records cannot be used, and `on_fault` is `error`.

    Attributes:
        place: Where the records come from.
    """

    def __init__(self, place: str, count: str, noun: str, lines: str, skip: str = "on_fault=skip") -> None:
        """Word the message; `skip` is what to set to leave the records out, empty where that cannot be done."""
        self.place = place
        self._rest = count, noun, lines
        advice = f"Mend them, or set {skip} to leave these {noun} out" if skip else "Mend them"
        super().__init__(f"{place} has {count}. {advice}:\n{lines}")

    def __reduce__(self) -> tuple[type, tuple[str, ...]]:
        """How it comes out of another process: as it is worded already."""
        return ValueError, (str(self),)

    def advising(self, skip: str) -> "BadRecords":
        """The same error with another setting to skip the records by."""
        return type(self)(self.place, *self._rest, skip)


def settle(
    faults: Sequence[Fault], on_fault: OnFault, place: str, dropped: int, total: int, noun: str = "rankings"
) -> None:
    """Do with faults what `on_fault` says: raise, or report how many records are dropped. Nothing without faults.

    Args:
        faults: All faults that were found.
        on_fault: `error` or `skip`.
        place: Where the records come from.
        dropped: How many records have faults.
        total: How many records there are.
        noun: What a record is called, in the plural.

    Raises:
        BadRecords: There are faults and `on_fault` is `error`.
        ValueError: `on_fault` is neither `error` nor `skip`.
    """
    if on_fault not in ("error", "skip"):
        raise ValueError(f"on_fault must be error or skip, not {on_fault!r}")
    if not faults:
        return
    count = f"{len(faults)} fault{'s' * (len(faults) > 1)}"
    if on_fault == "error":
        raise BadRecords(place, f"{count} in {dropped} of {total} {noun}", noun, listing(faults))
    logger.warning("%s: dropped %d of %d %s for %s:\n%s", place, dropped, total, noun, count, listing(faults))


def listing(faults: Sequence[Fault]) -> str:
    """A line for each kind of fault: the first place, how many more there are, and what is wrong."""
    places: dict[str, list[str]] = {}
    for fault in faults:
        places.setdefault(fault.what, []).append(fault.place)
    lines = []
    for what, found in places.items():
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        lines.append(f"  {found[0]}{more}: {what}")
    if left := sum(map(len, list(places.values())[SHOWN_FAULTS:])):
        lines[SHOWN_FAULTS:] = [f"  and {left} more"]
    return "\n".join(lines)


def parse_entries(
    entries: Iterable[tuple[int, Any]], parse: Callable[[int, dict[str, Any]], Record], place: str
) -> tuple[list[Record], list[Fault]]:
    """Make records of the objects of a JSON list.

    Args:
        entries: Entries of the list, each with its number.
        parse: Makes a record of an entry's number and content; a `TypeError`, `ValueError` or `KeyError` says what is
            wrong with it.
        place: Where the entries come from.

    Returns:
        The records of the entries that could be parsed, and the faults of the others.
    """
    records: list[Record] = []
    faults: list[Fault] = []
    for number, entry in entries:
        try:
            if not isinstance(entry, dict):
                raise TypeError(f"expected an object, got {type(entry).__name__}")
            records.append(parse(number, entry))
        except (TypeError, ValueError, KeyError) as error:
            what = f"no key {error}" if isinstance(error, KeyError) else str(error)
            faults.append(Fault(f"{place}, entry {number}", what))
    return records, faults


def check_text(value: Any, name: str) -> str:
    """The value, a text.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be a text")
    return value


def check_paths(value: Any, name: str) -> list[str]:
    """The value, a list of texts that are paths.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"`{name}` must be a list of relative paths")
    return value


def check_numbers(value: Any, name: str) -> list[int]:
    """The value, a list of whole numbers.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, list) or not all(type(number) is int for number in value):
        raise TypeError(f"`{name}` must be a list of whole numbers")
    return value
