"""Tables of ranked images, one row an image, in CSV or JSON."""

import csv
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2ifb.data.faults import Fault
from t2ifb.data.files import read_json_list
from t2ifb.data.rankings import RankedPrompt

NEEDED = ("prompt", "image", "rank")
OPTIONAL = ("prompt_id", "split")
SEPARATORS = ",;\t"


@dataclass(frozen=True)
class Row:
    """An image of a ranking as it stands in a table.

    Attributes:
        place: File and line (CSV) or entry (JSON).
        cells: By column, as read; a cell that is missing is None.
    """

    place: str
    cells: dict[str, Any]

    def text(self, column: str) -> str:
        """The cell as text; empty if it is missing."""
        cell = self.cells.get(column)
        return "" if cell is None else str(cell).strip()


def read_table(path: Path) -> list[Row]:
    """Read `<name>.csv` (with a header; comma, semicolon or tab between cells) or `<name>.json` (a list of objects).

    Raises:
        ValueError: The file is no such table, has no rows, or lacks a column; the message names the nearest column.
    """
    rows = _json_rows(path) if path.suffix == ".json" else _csv_rows(path)
    if not rows:
        raise ValueError(f"{path} has no rows; expected one row an image, with the columns {', '.join(NEEDED)}")
    return rows


def _csv_rows(path: Path) -> list[Row]:
    rows: list[Row] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max(SEPARATORS, key=header.count), strict=True)
            _check_columns(f"{path}, line 1", reader.fieldnames or ())
            for cells in reader:
                if None in cells:
                    raise ValueError(
                        f"{path}, line {reader.line_num} has more cells than there are columns; put prompts with "
                        "separators in quotation marks"
                    )
                rows.append(Row(f"{path}, line {reader.line_num}", dict(cells)))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no CSV file in UTF-8: {error}") from error
    return rows


def _json_rows(path: Path) -> list[Row]:
    rows: list[Row] = []
    for number, entry in enumerate(read_json_list(path)):
        place = f"{path}, entry {number}"
        if not isinstance(entry, dict):
            raise ValueError(f"{place}: expected an object with {', '.join(NEEDED)}, got {type(entry).__name__}")
        _check_columns(place, entry)
        rows.append(Row(place, entry))
    return rows


def _check_columns(place: str, columns: Iterable[str]) -> None:
    """Refuse a table that lacks a column."""
    there = list(columns)
    lacking = [name for name in NEEDED if name not in there]
    if not lacking:
        return
    others = [name for name in there if name not in (*NEEDED, *OPTIONAL)]
    hints = [
        f"is {near[0]!r} meant to be {name!r}?" for name in lacking if (near := difflib.get_close_matches(name, others))
    ]
    raise ValueError(
        f"{place}: no column {', '.join(lacking)}; there is {', '.join(map(str, there)) or 'nothing'}. "
        f"Expected {', '.join(NEEDED)}, and perhaps {', '.join(OPTIONAL)}. {' '.join(hints)}".rstrip()
    )


def group_rows(rows: Iterable[Row], root: Path) -> tuple[list[RankedPrompt], list[Fault], int]:
    """Put the rows of each ranking together: those with the same `prompt_id` or, without that column, `prompt`.

    Args:
        rows: In any order.
        root: What image paths are relative to.

    Returns:
        The rankings whose rows have no fault, in the order of their first rows; the faults; how many rankings there are
        in all.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(group_name(row), []).append(row)
    rankings: list[RankedPrompt] = []
    faults: list[Fault] = []
    for name, group in groups.items():
        found = [Fault(row.place, what) for row in group if (what := _row_fault(row)) is not None]
        for column in ("prompt", "split"):
            if len({row.text(column) for row in group}) > 1:
                found.append(Fault(group[0].place, f"the rows of ranking {name!r} have different entries in {column}"))
        if len({row.text("image") for row in group}) < len(group):
            found.append(Fault(group[0].place, f"ranking {name!r} has the same image twice"))
        faults += found
        if not found:
            images = tuple(root / row.text("image") for row in group)
            ranks = tuple(int(row.text("rank")) for row in group)
            rankings.append(RankedPrompt(name, group[0].text("prompt"), images, ranks))
    return rankings, faults, len(groups)


def group_name(row: Row) -> str:
    """What distinguishes the row's ranking from others; a row without prompt and id stands alone."""
    return row.text("prompt_id") or row.text("prompt") or row.place


def _row_fault(row: Row) -> str | None:
    rank = row.text("rank")
    if not rank.removeprefix("-").isdecimal():
        return f"rank must be a whole number from 1 on, found {rank!r}"
    if not row.text("image"):
        return "no image"
    return None
