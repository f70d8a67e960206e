"""Text tables: on the screen, as Markdown and as LaTeX. Names are escaped."""

import math
import re
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

LOOK: dict[str, Any] = {"box": SIMPLE_HEAD, "pad_edge": False, "show_edge": False, "collapse_padding": True}
"""Style of tables on the screen, narrow enough for 80 columns."""


NUMBERS: dict[str, Any] = {"justify": "right", "no_wrap": True}
TEXT: dict[str, Any] = {"overflow": "fold"}
"""Column style: numbers stay on one line, text is wrapped."""
LEAST_TEXT = 10
"""Minimum width of a text column, in characters."""


def screen(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """Create a table for the terminal. Names are plain text, never markup."""
    table = Table(title=title, **LOOK)
    for number, heading in enumerate(headings):
        table.add_column(heading, **(NUMBERS if number else TEXT))
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
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", _one_line(text).replace("&", "&amp;").replace("<", "&lt;"))


def escape_latex(text: str) -> str:
    """Escape text for LaTeX."""
    return "".join(_LATEX.get(letter, letter) for letter in _one_line(text))


_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def _one_line(text: str) -> str:
    return " ".join(text.split())


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown table. The first cell of each line is a name and is escaped."""
    shown = [headings, *([escape_markdown(name), *figures] for name, *figures in lines)]
    text = ["| " + " | ".join(line) + " |" for line in shown]
    return "\n".join([text[0], "|" + "---|" * len(headings), *text[1:]]) + "\n"


def latex(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """LaTeX tabular in the style of booktabs."""
    minus = re.compile(r"(?<!\S)-(?=\d)|(?<=\[)-(?=\d)")
    shown = [[name, *(minus.sub("$-$", figure) for figure in figures)] for name, *figures in _escaped(headings, lines)]
    rows = [" & ".join(line) + r" \\" for line in shown]
    body = [r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule"]
    columns = "l" + "r" * (len(headings) - 1)
    return (
        "\n".join(["% needs \\usepackage{booktabs}", rf"\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}"])
        + "\n"
    )


def _escaped(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[escape_latex(cell) for cell in line] for line in (headings, *lines)]


def without_nan(value: Any) -> Any:
    """Replace NaN (an interval without values) by None, `null` in JSON."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
