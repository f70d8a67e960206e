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
    **dict.fromkeys(("a", "first", "left", "chosen", "image_a", "image_1", "image1"), "first"),
    **dict.fromkeys(("b", "second", "right", "rejected", "image_b", "image_2", "image2"), "second"),
    **dict.fromkeys(
        ("tie", "equal", "same", "both", "draw", "neither", "none", "both_good", "both_bad", "good", "bad"), "tie"
    ),
}
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
        self.words: dict[str, Side] = dict(WORDS)
        for name, side in zip(names, ("first", "second"), strict=True):
            self.words |= {_word(name): side, _word(name.rpartition(".")[2]): side}  # type: ignore[dict-item]
        seen = {number for value in values if (number := to_number(value)) is not None}
        from_zero, from_one = (
            all(re.search(rf"{position}([._]|$)", name) for position, name in zip(positions, names, strict=True))
            for positions in ("01", "12")
        )
        forms = [numbers for possible, numbers in NUMBERS.items() if seen <= possible]
        self.numbers: dict[float, Side] = {}
        if seen and not self.given:
            if not forms or (len(forms) > 1 and not from_zero and not from_one):
                raise ValueError(
                    f"the labels {', '.join(f'{number:g}' for number in sorted(seen))} are ambiguous; say what they "
                    "mean with labels={first: …, second: …, tie: …}"
                )
            self.numbers = forms[-1 if from_one else 0]
            self.numbers = {number: side for number, side in self.numbers.items() if number != 0.5 or 0.5 in seen}
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
    text = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
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
