"""What the labels and votes of a table of pairs say."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from t2ifb.data.errors import brief

Side: TypeAlias = Literal["first", "second", "tie"]
SHARES: dict[Side, tuple[float, float]] = {"first": (1.0, 0.0), "second": (0.0, 1.0), "tie": (0.5, 0.5)}
"""Votes for both images."""
WORDS: dict[str, Side] = {
    **dict.fromkeys(("first", "chosen"), "first"),
    **dict.fromkeys(("second", "rejected"), "second"),
    **dict.fromkeys(
        ("tie", "equal", "same", "both", "draw", "neither", "none", "both_good", "both_bad", "good", "bad"), "tie"
    ),
}
"""Labels that mean the same for any names of the images' columns."""
POSITIONS = (("a", "b"), ("left", "right"), ("0", "1"), ("1", "2"))
"""What tells two images apart in the names of their columns and in labels."""
NUMBERS: dict[frozenset[float], dict[float, Side]] = {
    frozenset((0.0, 0.5, 1.0)): {0.0: "first", 0.5: "tie", 1.0: "second"},
    frozenset((1.0, 2.0)): {1.0: "first", 2.0: "second"},
}
"""Meanings of numbers: the position of the preferred image, counted from 0 or from 1."""


def has_numbers(values: Iterable[Any]) -> bool:
    """Whether a label is a number, so that its meaning depends on the other labels."""
    return any(to_number(value) is not None for value in values)


class Labels:
    """Meaning of the labels of one table."""

    def __init__(self, values: Iterable[Any], names: tuple[str, str], given: Mapping[str, Any] | None = None) -> None:
        """Find out what the labels mean.

        Args:
            values: All labels of a source; numbers are understood from all of them together.
            names: Columns of the first and of the second image. A label may be one of them.
            given: Label, or list of labels, for each of `first`, `second` and `tie`; others are errors then.

        Raises:
            ValueError: `given` has other keys, or numbers are ambiguous.
        """
        self.given: dict[str, Side] = {}
        for side, labels in (given or {}).items():
            if side not in SHARES:
                raise ValueError(f"labels: expected a label for first, second and tie, got {side!r}")
            listed = labels if isinstance(labels, Sequence) and not isinstance(labels, str) else [labels]
            self.given |= {_word(label): side for label in listed}  # type: ignore[misc]
        self.words = words_of(names)
        counted, sides = _positions(names)
        seen = {number for value in values if (number := to_number(value)) is not None}
        forms = [numbers for possible, numbers in NUMBERS.items() if seen <= possible]
        self.numbers: dict[float, Side] = {}
        if seen and not self.given:
            if not forms or (len(forms) > 1 and counted not in (("0", "1"), ("1", "2"))):
                raise ValueError(
                    f"the labels {', '.join(f'{number:g}' for number in sorted(seen))} are ambiguous; say what they "
                    "mean with labels={first: …, second: …, tie: …}"
                )
            meant = forms[-1 if counted == ("1", "2") else 0]
            other: dict[Side, Side] = {"first": sides[0], "second": sides[1], "tie": "tie"}
            self.numbers = {number: other[side] for number, side in meant.items() if number != 0.5 or 0.5 in seen}
        self.names = names

    def __str__(self) -> str:
        """How numbers are understood; empty without numbers."""
        named = {"first": self.names[0], "second": self.names[1], "tie": "neither"}
        return ", ".join(f"label {number:g} prefers {named[side]}" for number, side in self.numbers.items())

    def votes(self, value: Any) -> tuple[float, float] | None:
        """Votes for the first and the second image; None without a label.

        Raises:
            ValueError: The label is unknown.
        """
        word = _word(value)
        if not word or word == "nan":
            return None
        side = self.given.get(word)
        if side is None and not self.given:
            number = to_number(value)
            side = self.words.get(word) if number is None else self.numbers.get(number)
        if side is None:
            known = list(self.given) or ["a", "b", "left", "right", *dict.fromkeys(self.names), "tie"]
            raise ValueError(f"unknown label {brief(str(value))!r}; expected {', '.join(known)}")
        return SHARES[side]


def words_of(names: tuple[str, str] = ("", "")) -> dict[str, Side]:
    """Meaning of the words that are labels, for images whose columns have such names."""
    counted, sides = _positions(names)
    found = dict(WORDS)
    for pair in POSITIONS:
        # Of 0, 1 and 2 only those count that the columns have, since image_1 is the first or the second image.
        if pair[0].isalpha() or pair == (("0", "1") if counted == ("0", "1") else ("1", "2")):
            stems = ("", "image_") if pair[0].isalpha() else ("image_", "image")
            found |= {f"{stem}{word}": side for stem in stems for word, side in zip(pair, sides, strict=True)}
    for name, side in zip(names, ("first", "second"), strict=True):
        found |= {_word(each): side for each in (name, name.rpartition(".")[2]) if each}  # type: ignore[misc]
    return found


def _positions(names: tuple[str, str]) -> tuple[tuple[str, str] | None, tuple[Side, Side]]:
    """What tells the columns of two images apart, of `POSITIONS`, and which image has its first and its second word."""
    one, two = (set(re.findall(r"[a-z]+|\d+", name)) for name in names)
    for pair in POSITIONS:
        if pair[0] in one - two and pair[1] in two - one:
            return pair, ("first", "second")
        if pair[0] in two - one and pair[1] in one - two:
            return pair, ("second", "first")
    return None, ("first", "second")


def two_votes(first: Any, second: Any, signed: bool = False) -> tuple[float, float] | None:
    """Votes of two cells; None if both are empty or no votes were given.

    Args:
        first: Cell of the first image.
        second: Cell of the second image.
        signed: Whether the cells are preferences, such as -1, 0 and 1: the larger is preferred, equal ones are a tie.

    Raises:
        ValueError: A cell is not a number, or there are negative votes.
    """
    if first in (None, "") and second in (None, ""):
        return None
    one, two = to_number(first), to_number(second)
    if one is None or two is None:
        raise ValueError(f"votes must be numbers, found {brief(str(first))!r} and {brief(str(second))!r}")
    if signed:
        return SHARES["first" if one > two else "second" if two > one else "tie"]
    if min(one, two) < 0:
        raise ValueError(f"votes must be at least 0, found {one:g} and {two:g}")
    return (one, two) if one + two > 0 else None


def _word(value: Any) -> str:
    number = to_number(value)
    text = "" if value is None else str(value) if number is None else f"{number:g}"
    return re.sub(r"(?<=\w)[ \-]+(?=\w)", "_", text.strip().lower())


def to_number(value: Any) -> float | None:
    """A finite number, also written as text; None for all else."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
