"""Text tables: on the screen, as Markdown and as LaTeX; whatever is in a name is shown as it is."""

import math
import re
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

LOOK: dict[str, Any] = {"box": SIMPLE_HEAD, "pad_edge": False, "show_edge": False, "collapse_padding": True}
"""Of tables on the screen: narrow enough for 80 columns."""


def screen(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """A table for the terminal; names are text, never markup."""
    table = Table(title=title, **LOOK)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    return table


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, also in a table's cell."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", _one_line(text).replace("&", "&amp;").replace("<", "&lt;"))


def escape_latex(text: str) -> str:
    """Text that LaTeX shows as it is."""
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
    """A table; the first cell of each line is a name and shown as it is."""
    shown = [headings, *([escape_markdown(name), *figures] for name, *figures in lines)]
    text = ["| " + " | ".join(line) + " |" for line in shown]
    return "\n".join([text[0], "|" + "---|" * len(headings), *text[1:]]) + "\n"


def latex(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A tabular in the form of the package booktabs."""
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
    """NaN, of an interval over nothing, is `null` in JSON."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
