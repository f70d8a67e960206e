"""Metrics of a run over its steps: `metrics.csv` as columns of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2ifb.reporting.files import Notes, number, read_rows, rounded

Column = list[float | None]


@dataclass(frozen=True)
class Curves:
    """Metrics of one run and one kind, `train` or `val`.

    Attributes:
        step: (N,) optimiser steps, ascending.
        wall: (N,), seconds, None where unknown.
        columns: Values (N,) by name without the kind; None where not measured.
    """

    step: list[float]
    wall: Column
    columns: dict[str, Column]

    def at(self, step: float | None) -> dict[str, float]:
        """Metrics at a step; empty if the row does not exist."""
        if step not in self.step:
            return {}
        row = self.step.index(step)
        return {name: value for name, column in self.columns.items() if (value := column[row]) is not None}

    def thinned(self, most: int, kept: float | None = None) -> "Curves":
        """At most `most` evenly spread rows, including the first, the last and the kept step."""
        some = spread(len(self.step), most, self.step.index(kept) if kept in self.step else None)
        columns = {name: [column[row] for row in some] for name, column in self.columns.items()}
        return Curves([self.step[row] for row in some], [self.wall[row] for row in some], columns)

    def as_data(self) -> dict[str, Any]:
        """Data for the page, rounded to the digits that a chart can show."""
        columns = {name: [rounded(value) for value in column] for name, column in self.columns.items()}
        return {"step": self.step, "wall": self.wall, "columns": columns}


def read_curves(path: Path, notes: Notes) -> dict[str, Curves]:
    """Training and validation metrics of a `metrics.csv`; empty if the file is missing."""
    rows = [(step, row) for row in read_rows(path, notes) if (step := number(row.get("step"))) is not None]
    rows.sort(key=lambda item: item[0])
    bad = sorted({key for _, row in rows for key, cell in row.items() if cell and _is_wrong(cell)})
    if bad:
        notes.add(path, f"cells that are not numbers, or infinite, are skipped ({', '.join(bad)})")
    return {kind: _of_kind(rows, f"{kind}/") for kind in ("train", "val")}


def spread(count: int, most: int, kept: int | None = None) -> list[int]:
    """At most `most` evenly spread indices below `count`, with `kept` and, if possible, the first and last."""
    if count <= most:
        return list(range(count))
    some = [round(n * (count - 1) / (most - 1)) for n in range(most)] if most > 1 else [count - 1][:most]
    if some and kept is not None and kept not in some:
        some[min(range(1, most - 1) or [most - 1], key=lambda n: abs(some[n] - kept))] = kept
    return some


def _is_wrong(cell: str) -> bool:
    """Whether a cell is not a valid number. NaN is valid: a mean without values, such as an unsampled step."""
    return number(cell) is None and cell.strip().lower() != "nan"


def _of_kind(rows: Sequence[tuple[float, dict[str, str]]], prefix: str) -> Curves:
    """Rows and columns with at least one value of this kind."""
    names = {key: None for _, row in rows for key, cell in row.items() if key.startswith(prefix) and cell}
    kept = [(step, row) for step, row in rows if any(number(row[name]) is not None for name in names)]
    columns = {name.removeprefix(prefix): [number(row[name]) for _, row in kept] for name in names}
    columns = {name: column for name, column in columns.items() if any(value is not None for value in column)}
    return Curves([step for step, _ in kept], [number(row.get("wall_seconds")) for _, row in kept], columns)
