"""Tables that evaluate scorers, on the screen and as Markdown, CSV, JSON and LaTeX."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from t2ifb.data.files import atomic_write
from t2ifb.evaluation.statistics import Interval
from t2ifb.evaluation.table_text import LOOK, NUMBERS, TEXT, latex, markdown, screen, without_nan


@dataclass(frozen=True)
class Row:
    """Results of one scorer.

    Attributes:
        name: Displayed name.
        accuracy: Accuracy over comparisons, in [0, 1].
        by_prompt: Accuracy averaged over prompts, in [0, 1].
        ties: Number of comparisons with equal scores.
        comparisons: Number of comparisons.
        against: Paired difference to the reference scorer, if any.
        tau: Mean of Kendall's tau-b over prompts, if requested.
        images_per_second: Scoring speed, if measured.
        published: Published accuracy in per cent, if any.
    """

    name: str
    accuracy: Interval | None = None
    by_prompt: Interval | None = None
    ties: int | None = None
    comparisons: int | None = None
    against: Interval | None = None
    tau: Interval | None = None
    images_per_second: float | None = None
    published: float | None = None


REFERENCE = "CLIP Score"
"""Name of the reference scorer."""
RANDOM, CEILING = "random", "annotator ceiling"
"""Names of the rows for random scores, and for the ground truth that annotators follow with noise."""
HEADINGS = ("scorer", "accuracy %", "by prompt", "difference", "ties", "tau", "images/s", "published %")


def cells(row: Row, wide: bool = False) -> list[str]:
    """The row as text, in the order of `HEADINGS`. With `wide`, all columns have intervals in brackets."""
    by_prompt = row.by_prompt.scaled(100) if row.by_prompt else None
    return [
        row.name,
        _with_interval(row.accuracy, ""),
        (_with_interval(row.by_prompt, "") if wide else f"{by_prompt.mean:.2f}") if by_prompt else "",
        _with_interval(row.against, "+"),
        "" if row.ties is None else str(row.ties),
        ""
        if row.tau is None
        else f"{row.tau.mean:.3f}" + (f" [{row.tau.low:.3f}, {row.tau.high:.3f}]" if wide else ""),
        ""
        if row.images_per_second is None
        else f"{row.images_per_second:,.{0 if row.images_per_second >= 100 else 1}f}",
        "" if row.published is None else f"{row.published:.2f}",
    ]


def _with_interval(value: Interval | None, sign: str) -> str:
    if value is None:
        return ""
    percent = value.scaled(100)
    return f"{percent.mean:{sign}.2f} [{percent.low:{sign}.1f}, {percent.high:{sign}.1f}]"


def _shown(
    rows: Sequence[Row], reference: str, wide: bool = False, only: Sequence[str] = HEADINGS
) -> tuple[list[str], list[list[str]]]:
    """Headings and cells without empty columns."""
    table = [cells(row, wide) for row in rows]
    used = [c for c, heading in enumerate(HEADINGS) if heading in only and any(line[c] for line in table)]
    headings = [f"minus {reference}" if HEADINGS[c] == "difference" else HEADINGS[c] for c in used]
    return headings, [[line[column] for column in used] for line in table]


def screen_table(rows: Sequence[Row], title: str, reference: str = REFERENCE) -> Table:
    """Table of accuracies for the terminal. Names are plain text, never markup."""
    return screen(title, *_shown(rows, reference, only=[h for h in HEADINGS if h not in ("tau", "images/s")]))


def order_table(rows: Sequence[Row], title: str) -> Table:
    """Table of Kendall's tau and speed for the terminal."""
    measured = [row for row in rows if row.tau is not None]
    return screen(title, *_shown(measured, "", wide=True, only=("scorer", "tau", "images/s")))


def parts_table(by_part: Mapping[str, Mapping[str, Interval]], title: str) -> Table:
    """Table of each scorer's accuracy on each component of the ground truth, for the terminal."""
    table = Table(title=title, **LOOK)
    table.add_column("scorer", **TEXT)
    for part in by_part:
        table.add_column(f"{part} %", **NUMBERS)
    for name in next(iter(by_part.values())):
        table.add_row(Text(name), *(_with_interval(scorers[name], "") for scorers in by_part.values()))
    return table


def write_table(rows: Sequence[Row], folder: Path, stem: str = "table", reference: str = REFERENCE) -> None:
    """Write `<stem>.md`, `.csv`, `.json` and `.tex` to a folder, each atomically.

    Names are escaped in Markdown and LaTeX. CSV and JSON have unrounded numbers, with accuracies in [0, 1].
    """
    headings, lines = _shown(rows, reference, wide=any(row.tau for row in rows))
    for suffix, text in (
        ("md", markdown(headings, lines)),
        ("tex", latex(headings, lines)),
        ("csv", _csv(rows)),
        ("json", json.dumps([without_nan(asdict(row)) for row in rows], indent=2, allow_nan=False)),
    ):
        with atomic_write(folder / f"{stem}.{suffix}") as file:
            file.write(text.encode())


def write_matrix(names: Sequence[str], matrix: NDArray[np.float64], path: Path) -> None:
    """Write a square matrix as CSV with row and column names."""
    lines = [["scorer", *names], *([name, *map(repr, row.tolist())] for name, row in zip(names, matrix, strict=True))]
    with atomic_write(path) as file:
        buffer = io.StringIO()
        csv.writer(buffer).writerows(lines)
        file.write(buffer.getvalue().encode())


def _csv(rows: Sequence[Row]) -> str:
    """CSV with one column per number (`accuracy`, `accuracy_low`, `accuracy_high`, ...), without empty columns."""
    lines = [_flat(row) for row in rows]
    names = ["scorer", *(f.name + end for f in fields(Row) for end in ("", "_low", "_high") if f.name != "name")]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [name for name in names if any(name in line for line in lines)], restval="")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _flat(row: Row) -> dict[str, Any]:
    line: dict[str, Any] = {"scorer": row.name}
    for name, value in vars(row).items():
        if isinstance(value, Interval):
            line |= {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
        elif name != "name" and value is not None:
            line[name] = value
    return line
