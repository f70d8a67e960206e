"""Tolerant readers for a run's files: errors become notes on the page, never exceptions."""

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The fast loader, if PyYAML was built with it."""


class Notes:
    """Read errors of one run, in order of discovery.

    Attributes:
        texts: Messages, one line each.
    """

    def __init__(self, folder: Path) -> None:
        """Collect notes for the run in `folder`. File names are relative to it."""
        self.folder = folder
        self.texts: list[str] = []

    def add(self, path: Path, what: str) -> None:
        """Add an error about a file."""
        name = path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else str(path)
        self.texts.append(f"{name}: {what}")


def read_json(path: Path, kind: type, notes: Notes) -> Any:
    """Read a JSON file of type `kind` (dict or list). None if missing or broken; the latter is noted."""
    return _read(path, kind, notes, "JSON", json.loads)


def read_yaml(path: Path, kind: type, notes: Notes) -> Any:
    """Read a YAML file like `read_json`; an empty one is an empty `kind`. Interpolations stay as written."""
    return _read(path, kind, notes, "YAML", lambda text: yaml.load(text, _SafeLoader) or kind())


def _read(path: Path, kind: type, notes: Notes, language: str, parse: Callable[[str], Any]) -> Any:
    if (text := _text(path, notes)) is None:
        return None
    try:
        found = parse(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        notes.add(path, f"not valid {language} ({' '.join(str(error).split())})")
        return None
    if isinstance(found, kind):
        return found
    notes.add(path, f"expected a {kind.__name__}, found {type(found).__name__}")
    return None


def read_rows(path: Path, notes: Notes) -> list[dict[str, str]]:
    """Rows of a CSV file, cells as text. A truncated last row is skipped and noted."""
    text = _text(path, notes)
    if text is None:
        return []
    try:
        lines = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        notes.add(path, f"not valid CSV ({error})")
        return []
    if lines and not text.endswith(("\n", "\r")):
        notes.add(path, "the last line is truncated and was skipped")
        lines.pop()
    if not lines:
        notes.add(path, "is empty")
        return []
    heading, *body = lines
    whole = [line for line in body if len(line) == len(heading)]
    if len(whole) < sum(bool(line) for line in body):
        notes.add(
            path,
            f"{len(body) - len(whole)} of its lines have another number of cells than the heading and were skipped",
        )
    return [dict(zip(heading, line, strict=True)) for line in whole]


def number(cell: Any) -> float | None:
    """A finite number, or None for an empty cell, NaN, infinity or other text."""
    if isinstance(cell, bool):
        return None
    try:
        value = float(cell)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def rounded(value: float | None, digits: int = 6) -> float | None:
    """Round to the digits that a chart can show, to keep the page small."""
    return None if value is None else float(f"{value:.{digits}g}")


def _text(path: Path, notes: Notes) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        notes.add(path, f"cannot be read ({error.strerror})")
        return None
