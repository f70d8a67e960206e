"""The table at the end of a reward run: scorers, their accuracies, their intervals."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from t2ifb.data.files import atomic_write
from t2ifb.evaluation.statistics import Interval


@dataclass(frozen=True)
class Row:
    """One scorer.

    Attributes:
        name: As shown.
        accuracy: Over comparisons, in [0, 1].
        by_prompt: Mean over prompts, in [0, 1].
        ties: Comparisons that the scorer could not decide.
        comparisons: How many it was asked.
        against: Paired difference to `against_name`, if there is one.
        published: The published accuracy in per cent, if there is one.
    """

    name: str
    accuracy: Interval | None = None
    by_prompt: Interval | None = None
    ties: int | None = None
    comparisons: int | None = None
    against: Interval | None = None
    published: float | None = None


LOOK: dict[str, Any] = {"box": SIMPLE_HEAD, "pad_edge": False, "show_edge": False, "collapse_padding": True}
"""Of tables on the screen: narrow enough for 80 columns."""
HEADINGS = ("scorer", "accuracy %", "by prompt", "difference", "ties", "published %")


def cells(row: Row) -> list[str]:
    """The row as text, in the order of `HEADINGS`; intervals in brackets."""
    return [
        row.name,
        _with_interval(row.accuracy, ""),
        f"{100 * row.by_prompt.mean:.2f}" if row.by_prompt else "",
        _with_interval(row.against, "+"),
        "" if row.ties is None else str(row.ties),
        "" if row.published is None else f"{row.published:.2f}",
    ]


def _with_interval(value: Interval | None, sign: str) -> str:
    if value is None:
        return ""
    percent = value.scaled(100)
    return f"{percent.mean:{sign}.2f} [{percent.low:{sign}.1f}, {percent.high:{sign}.1f}]"


def _shown(rows: Sequence[Row], reference: str) -> tuple[list[str], list[list[str]]]:
    """Headings and cells without the columns that are empty everywhere."""
    table = [cells(row) for row in rows]
    used = [column for column in range(len(HEADINGS)) if any(line[column] for line in table)]
    headings = [f"minus {reference}" if HEADINGS[c] == "difference" else HEADINGS[c] for c in used]
    return headings, [[line[column] for column in used] for line in table]


def screen_table(rows: Sequence[Row], title: str, reference: str = "CLIP Score") -> Table:
    """The table for the terminal; names are text, never markup."""
    headings, lines = _shown(rows, reference)
    table = Table(title=title, **LOOK)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    return table


def parts_table(by_part: Mapping[str, Mapping[str, Interval]], title: str) -> Table:
    """Accuracy of each scorer against each part of a truth, for the terminal."""
    table = Table(title=title, **LOOK)
    table.add_column("scorer", no_wrap=True)
    for part in by_part:
        table.add_column(f"{part} %", justify="right", no_wrap=True)
    for name in next(iter(by_part.values())):
        table.add_row(Text(name), *(_with_interval(scorers[name], "") for scorers in by_part.values()))
    return table


def write_table(rows: Sequence[Row], folder: Path, stem: str = "table", reference: str = "CLIP Score") -> None:
    """Write `<stem>.md`, `<stem>.csv` and `<stem>.json` into a folder, each whole or not at all."""
    headings, lines = _shown(rows, reference)
    text = [" | ".join(["", *headings, ""]).strip(), "|" + "---|" * len(headings)]
    text += [" | ".join(["", *(cell.replace("|", r"\|") for cell in line), ""]).strip() for line in lines]
    with atomic_write(folder / f"{stem}.md") as file:
        file.write(("\n".join(text) + "\n").encode())
    with atomic_write(folder / f"{stem}.json") as file:
        file.write(json.dumps([_without_nan(asdict(row)) for row in rows], indent=2, allow_nan=False).encode())
    with atomic_write(folder / f"{stem}.csv") as file:
        buffer = io.StringIO()
        csv.writer(buffer).writerows([headings, *lines])
        file.write(buffer.getvalue().encode())


def _without_nan(value: Any) -> Any:
    """NaN, of an interval over nothing, is `null` in JSON."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
