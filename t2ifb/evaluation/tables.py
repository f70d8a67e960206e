"""Tables of results, on the screen and as Markdown, CSV, JSON and LaTeX. Names are escaped."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pandas import DataFrame, Index
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tabulate import tabulate

from t2ifb.evaluation.statistics import Interval
from t2ifb.utils.files import write_json, write_text

LOOK: dict[str, Any] = {"box": SIMPLE_HEAD, "pad_edge": False, "show_edge": False, "collapse_padding": True}
"""Style of tables on the screen, narrow enough for 80 columns."""


NUMBERS: dict[str, Any] = {"justify": "right", "no_wrap": True}
TEXT: dict[str, Any] = {"overflow": "fold"}
"""Column style: numbers stay on one line, text is wrapped."""
LEAST_TEXT = 10
"""Minimum width of a text column, in characters."""


def screen(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """Create a table for the terminal. Title, headings and cells are plain text, never markup."""
    table = Table(title=Text(title, "table.title"), **LOOK)
    for number, heading in enumerate(headings):
        table.add_column(Text(heading), **(NUMBERS if number else TEXT))
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    return table


def show(table: Table) -> None:
    """Print a table. In a narrow terminal it is wider than the screen rather than truncated."""
    console = Console()
    for column in table.columns:
        cells = [cell if isinstance(cell, Text) else Text(str(cell)) for cell in (column.header, *column.cells)]
        longest = max((cell_len(line) for cell in cells for line in cell.plain.splitlines()), default=0)
        column.width = longest if column.no_wrap else min(longest, LEAST_TEXT)
    least = console.measure(table, options=console.options.update(width=10_000)).maximum
    for column in table.columns:
        column.width = column.width if column.no_wrap else None
    Console(width=max(console.width, least)).print(table)


def escape_markdown(text: str) -> str:
    """Escape text for Markdown, including table cells."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;"))


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown table. The headings and the first cell of each line are names and are escaped."""
    shown = [[escape_markdown(name), *figures] for name, *figures in lines]
    return str(tabulate(shown, [*map(escape_markdown, headings)], "pipe", disable_numparse=True)) + "\n"


def latex(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """LaTeX tabular in the style of booktabs. All cells are escaped."""
    shown = [[" ".join(cell.split()) for cell in line] for line in lines]
    align = ["left", *["right"] * (len(headings) - 1)]
    text = tabulate(shown, headings, "latex_booktabs", disable_numparse=True, colalign=align if lines else None)
    text = re.sub(r"(?<= & )( *)-(?=\d)|(?<=\[)-(?=\d)", r"\1$-$", text)
    return f"% needs \\usepackage{{booktabs}} and \\usepackage[T1]{{fontenc}}\n{text}\n"


def without_nan(value: Any) -> Any:
    """Replace NaN (an interval without values) by None, `null` in JSON."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


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
    rows: Sequence[Row], wide: bool = False, only: Sequence[str] = HEADINGS
) -> tuple[list[str], list[list[str]]]:
    """Headings and cells without empty columns."""
    table = [cells(row, wide) for row in rows]
    used = [c for c, heading in enumerate(HEADINGS) if heading in only and any(line[c] for line in table)]
    headings = [f"minus {REFERENCE}" if HEADINGS[c] == "difference" else HEADINGS[c] for c in used]
    return headings, [[line[column] for column in used] for line in table]


FEW = 10
"""Fewer prompts are too few for intervals over prompts."""


def screen_table(rows: Sequence[Row], prompts: int, split: str) -> Table:
    """Table of accuracies on the prompts of a split, for the terminal. Names are plain text, never markup."""
    counted = f"{prompts} {split} prompt{'' if prompts == 1 else 's'}"
    shown = _shown(rows, only=[h for h in HEADINGS if h not in ("tau", "images/s")])
    table = screen(f"Preference accuracy on {counted}", *shown)
    if prompts < FEW:
        text = f"{counted}: too few for a verdict, and the intervals are too narrow"
        table.caption = Text(text, "table.caption")
    return table


def order_table(rows: Sequence[Row], title: str) -> Table:
    """Table of Kendall's tau and speed for the terminal."""
    measured = [row for row in rows if row.tau is not None]
    return screen(title, *_shown(measured, wide=True, only=("scorer", "tau", "images/s")))


def parts_table(by_part: Mapping[str, Mapping[str, Interval]], title: str) -> Table:
    """Table of each scorer's accuracy on each component of the ground truth, for the terminal."""
    names = next(iter(by_part.values()))
    lines = [[name, *(_with_interval(scorers[name], "") for scorers in by_part.values())] for name in names]
    return screen(title, ["scorer", *(f"{part} %" for part in by_part)], lines)


def write_table(rows: Sequence[Row], folder: Path, stem: str = "table") -> None:
    """Write `<stem>.md`, `.csv`, `.json` and `.tex` to a folder, see `write_results`."""
    write_results(rows, *_shown(rows, wide=any(row.tau for row in rows)), folder, stem)


def write_results(
    rows: Sequence[Any], headings: Sequence[str], lines: Sequence[Sequence[str]], folder: Path, stem: str
) -> None:
    """Write `<stem>.md`, `.tex`, `.csv` and `.json` to a folder, each atomically.

    Names are escaped in Markdown and LaTeX. CSV and JSON have unrounded numbers.

    Args:
        rows: Dataclasses of the results, with a `name`.
        headings: Headings of the rounded table.
        lines: Its cells as text.
        folder: The folder.
        stem: Name of the files.
    """
    write_text(folder / f"{stem}.md", markdown(headings, lines))
    write_text(folder / f"{stem}.tex", latex(headings, lines))
    numbers = DataFrame([_flat(row) for row in rows], dtype=object).dropna(axis=1, how="all")
    write_text(folder / f"{stem}.csv", numbers.to_csv(index=False))
    content = [without_nan(asdict(row)) for row in rows]
    write_json(folder / f"{stem}.json", content)


def write_matrix(names: Sequence[str], matrix: NDArray[np.float64], path: Path) -> None:
    """Write a square matrix as CSV with row and column names."""
    write_text(path, DataFrame(matrix, Index(names, name="scorer"), names).to_csv())


def _flat(row: Any) -> dict[str, Any]:
    """One entry per number: `accuracy`, `accuracy_low`, `accuracy_high`, ..."""
    line: dict[str, Any] = {}
    for name, value in vars(row).items():
        ends = {"": "mean", "_low": "low", "_high": "high"} if isinstance(value, Interval) else {}
        line |= {name + end: getattr(value, part) for end, part in ends.items()} or {name: value}
    return {"scorer": line.pop("name"), **line}
