"""Reader of tables of images and prompts in CSV, JSON, JSON Lines, Parquet or WebDataset's tars.

Parquet and tars are read through the `datasets` library (`read_columns`). Text files are not, because they have no
types and the library guesses them: from JSON, the identifiers "007" and 7 both become 7, and "2024-05-06" becomes a
time; a CSV row with too many cells is shifted to the left without a message.
"""

import csv
import difflib
import io
import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PureWindowsPath
from typing import Any

from t2ifb.data.errors import BadRecord, brief
from t2ifb.data.rankings import Image
from t2ifb.data.storage.columnar import ColumnImage, read_columns
from t2ifb.utils.files import read_json_list, read_text

SEPARATORS = ",;\t"
PAIR = re.compile(r"(.*[ _-])?(a|b|0|1|2|left|right|better|worse|winner|loser|chosen|rejected)([ _-].*)?")
"""Column names of a table with one row per comparison."""


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        place: File and line (CSV, JSON Lines), entry (JSON) or row (Parquet, tar).
        cells: Values by lower-case column name; a missing cell is None.
    """

    place: str
    cells: dict[str, Any]

    def text(self, column: str) -> str:
        """The cell as text; empty if missing."""
        cell = self.cells.get(column)
        return "" if cell is None else str(cell).strip()


def read_table(
    path: Path, needed: Sequence[str], optional: Sequence[str] = (), accepts: Callable[[list[str]], bool] | None = None
) -> list[Row]:
    """Read a table.

    Args:
        path: `.csv` or `.tsv` (UTF-8, with a header; comma, semicolon or tab between cells), `.json` (a list of
            objects), `.jsonl` (one object per line), `.parquet`, or `.tar` (`read_columns`); letter case does not
            matter.
        needed: Required columns.
        optional: Optional columns, named in messages.
        accepts: Whether a table with other lower-case columns is accepted all the same; it may raise `ValueError`.

    Raises:
        ValueError: The file is not such a table, has no rows, or lacks a column; the message names place and remedy.
    """
    if (read := READERS.get(path.suffix.lower())) is None:
        raise ValueError(f"{path} is not a supported table; expected {', '.join(READERS)}")
    if not path.is_file():
        raise ValueError(f"{path} does not exist; expected a table with the columns {', '.join(needed)}")

    def check(place: str, columns: Iterable[str]) -> None:
        there = list(columns)
        if twice := [name for name, count in Counter(there).items() if name and count > 1]:
            raise ValueError(f"{place}: more than one column {', '.join(twice)}")
        try:
            if accepts is not None and not set(needed) <= set(there) and accepts(there):
                return
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        _check_columns(place, there, needed, optional, accepts is not None)

    rows = [row for row in read(path, check) if any(row.text(column) for column in row.cells)]
    if not rows:
        raise ValueError(f"{path} has no rows; expected one row per image, with the columns {', '.join(needed)}")
    if set(needed) <= rows[0].cells.keys():
        check_cells(rows, (*needed, *optional))
    return rows


IMAGES = ("image", "first", "second")
"""Columns whose cells may be images."""


def check_cells(rows: Iterable[Row], columns: Sequence[str]) -> None:
    """Check that cells are texts, numbers or empty, or an image in a column of images.

    Raises:
        ValueError: A cell of one of the columns is not; the message names its place.
    """
    for row in rows:
        for column in columns:
            cell = row.cells.get(column)
            allowed = (str, int, float, ColumnImage) if column in IMAGES else (str, int, float)
            if cell is not None and not isinstance(cell, allowed):
                raise ValueError(f"{row.place}: {column} must be a text or a number, found {type(cell).__name__}")


Check = Callable[[str, Iterable[str]], None]


def _csv_rows(path: Path, check: Check) -> Iterator[Row]:
    text = read_text(path)
    header = io.StringIO(text, newline=None).readline()
    delimiter = max(SEPARATORS, key=header.count) if path.suffix.lower() == ".csv" else "\t"
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    columns: list[str] = []
    try:
        for cells in reader:
            place, line = f"{path}, line {line}", reader.line_num + 1
            if not columns:
                columns = [cell.strip().lower() for cell in cells]
                check(place, columns)
            elif len(cells) > len(columns):
                raise ValueError(
                    f"{place} has more cells than there are columns; put prompts with {delimiter!r} in quotation marks"
                )
            elif any(cell.strip() for cell in cells):
                if len(cells) < len(columns):
                    raise ValueError(
                        f"{place} has only {len(cells)} of {len(columns)} cells; the columns are {', '.join(columns)}"
                    )
                yield Row(place, dict(zip(columns, cells, strict=True)))
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {line}: unbalanced quotation marks ({error}); put a prompt with quotation marks into "
            "quotation marks and double those inside"
        ) from error
    if not columns:
        check(f"{path}, line 1", columns)


def _json_rows(path: Path, check: Check) -> Iterator[Row]:
    entries = enumerate(read_json_list(path))
    yield from _checked([_row(f"{path}, entry {number}", entry) for number, entry in entries], check)


def _json_lines(path: Path, check: Check) -> Iterator[Row]:
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{place} is not JSON ({error}); expected one object per line") from error
            rows.append(_row(place, entry))
    yield from _checked(rows, check)


def _checked(rows: list[Row], check: Check) -> list[Row]:
    """The rows; each may leave out columns that others have."""
    if rows:
        check(rows[0].place, dict.fromkeys(column for row in rows for column in row.cells))
    return rows


def _columnar_rows(path: Path, check: Check) -> Iterator[Row]:
    columns, entries = read_columns(path)
    check(str(path), columns)
    for place, entry in entries:
        yield _row(place, entry)


READERS: dict[str, Callable[[Path, Check], Iterator[Row]]] = {
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".json": _json_rows,
    ".jsonl": _json_lines,
    ".parquet": _columnar_rows,
    ".tar": _columnar_rows,
}


def _row(place: str, entry: Any) -> Row:
    """A row from an object with a key for each column."""
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: expected an object with a key for each column, got {type(entry).__name__}")
    cells = {str(key).strip().lower(): cell for key, cell in entry.items()}
    if len(cells) < len(entry):
        raise ValueError(f"{place}: two keys differ only in letter case or spaces ({', '.join(map(str, entry))})")
    return Row(place, {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in cells.items()})


def _check_columns(place: str, there: list[str], needed: Sequence[str], optional: Sequence[str], pairs: bool) -> None:
    """Raise an error if a column is missing; `pairs` says whether a table of pairs would be read too."""
    lacking = [name for name in needed if name not in there]
    if not lacking:
        return
    named = "name their columns with columns={first: …, second: …, label: …}"
    if sum(PAIR.fullmatch(name) is not None for name in there) > 1:
        remedy = f"rows of images are expected. Write one row for each image, with the columns {', '.join(needed)}"
        raise ValueError(
            f"{place}: this looks like a table of pairs ({', '.join(there)}), but "
            f"{f'its images are not known; {named}' if pairs else remedy}"
        )
    others = [name for name in there if name not in (*needed, *optional)]
    hints = [
        f"is {near[0]!r} meant to be {name!r}?" for name in lacking if (near := difflib.get_close_matches(name, others))
    ]
    perhaps = f", and perhaps {', '.join(optional)}" if optional else ""
    raise ValueError(
        f"{place}: no column {', '.join(lacking)}; found {', '.join(there) or 'nothing'}. "
        f"Expected {', '.join(needed)}{perhaps}{f', or two images in each row: {named}' if pairs else ''}. "
        f"{' '.join(hints)}".rstrip()
    )


URL = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)
SHOWN = 10
"""Number of missing images listed individually."""
COMMON = {
    "url": "{share} are URLs, such as {first}; download the images and name their files",
    "case": "{share} differ from the files in letter case, such as {first}; use the exact file names",
    "form": "{share} differ from the files by the Unicode form of their letters, such as {first}; give both one form, "
    "NFC",
    "elsewhere": "{share} are absolute paths that this machine does not have, such as {first}; name images relative to "
    "the table",
    "missing": "{share} name no file, such as {first}",
}


def locate(rows: Sequence[Row], root: Path) -> tuple[list[Image | None], list[BadRecord]]:
    """Find the images of rows.

    Args:
        rows: Rows with a column `image`: an image, or a file's name, perhaps with Windows separators.
        root: Root of the image names.

    Returns:
        The images, None for missing ones, and the errors: one for all images that are missing for the same reason.
    """
    _names.cache_clear()
    paths: list[Image | None] = []
    absent: dict[str, list[tuple[Row, str]]] = {}
    for row in rows:
        if isinstance(image := row.cells.get("image"), ColumnImage):
            paths.append(image)
            continue
        path, reason, hint = _find(row.text("image"), root)
        paths.append(path)
        if path is None:
            absent.setdefault(reason, []).append((row, hint))
    errors = []
    for reason, found in absent.items():
        share = f"{len(found)} of {len(rows)} image names"
        named = [(row.place, brief(row.text("image")) + hint) for row, hint in found]
        if reason == "missing" and len(found) <= SHOWN:
            errors += [BadRecord(place, f"image {name} is missing") for place, name in named]
        elif reason == "empty":
            errors += [BadRecord(place, "no image") for place, _ in named]
        else:
            errors.append(BadRecord(named[0][0], COMMON[reason].format(share=share, first=named[0][1])))
    return paths, errors


def _find(name: str, root: Path) -> tuple[Path | None, str, str]:
    """The file of a name, or None with the reason and a hint."""
    if not name:
        return None, "empty", ""
    if URL.match(name):
        return None, "url", ""
    for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
        try:
            if (root / spelling).is_file():
                return root / spelling, "", ""
        except (OSError, ValueError):  # name too long, or with a null byte
            continue
    if PureWindowsPath(name).drive or Path(name).is_absolute():
        return None, "elsewhere", ""
    path = root / name.replace("\\", "/")
    if (other := _alike(path)) is not None:
        same = unicodedata.normalize("NFC", str(other)) == unicodedata.normalize("NFC", str(path))
        return None, "form" if same else "case", "" if same else f" for {brief(other.name)}"
    near = difflib.get_close_matches(path.name, _names(path.parent).values(), n=1)
    return None, "missing", f" (did you mean {near[0]!r}?)" if near else f" ({brief(str(path), 200)})"


def _alike(path: Path) -> Path | None:
    """A file whose path differs from `path` only in letter case or Unicode form."""
    found = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        if part != ".." and not os.path.lexists(found / part):
            part = _names(found).get(_key(part), "")
            if not part:
                return None
        found /= part
    return found if found.is_file() else None


@cache
def _names(folder: Path) -> dict[str, str]:
    """Names in a folder by `_key`."""
    try:
        return {_key(name): name for name in os.listdir(folder or ".")}
    except OSError:
        return {}


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
