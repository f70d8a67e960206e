"""What a run measured over its steps: `metrics.csv` as columns of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2ifb.reporting.files import Notes, number, read_rows, rounded

Column = list[float | None]


@dataclass(frozen=True)
class Curves:
    """Rows of one kind, `train` or `val`, of one run.

    Attributes:
        step: (N,) optimiser steps, ascending.
        wall: (N,) seconds, None where unknown.
        columns: By name without its kind (N,) figures, None where nothing was measured.
    """

    step: list[float]
    wall: Column
    columns: dict[str, Column]

    def at(self, step: float | None) -> dict[str, float]:
        """What was measured at a step; nothing if there is no such row."""
        if step not in self.step:
            return {}
        row = self.step.index(step)
        return {name: value for name, column in self.columns.items() if (value := column[row]) is not None}

    def thinned(self, most: int, kept: float | None = None) -> "Curves":
        """With at most so many rows, evenly spread, the first, the last and that of the kept step among them."""
        some = spread(len(self.step), most, self.step.index(kept) if kept in self.step else None)
        columns = {name: [column[row] for row in some] for name, column in self.columns.items()}
        return Curves([self.step[row] for row in some], [self.wall[row] for row in some], columns)

    def as_data(self) -> dict[str, Any]:
        """For the page, with the digits that a chart can show."""
        columns = {name: [rounded(value) for value in column] for name, column in self.columns.items()}
        return {"step": self.step, "wall": self.wall, "columns": columns}


def read_curves(path: Path, notes: Notes) -> dict[str, Curves]:
    """The training and the validation figures of a `metrics.csv`; empty ones if it is not there."""
    rows = [(step, row) for row in read_rows(path, notes) if (step := number(row.get("step"))) is not None]
    rows.sort(key=lambda item: item[0])
    bad = sorted({key for _, row in rows for key, cell in row.items() if cell and _is_wrong(cell)})
    if bad:
        notes.add(path, f"cells that are no numbers, or infinite, are left out ({', '.join(bad)})")
    return {kind: _of_kind(rows, f"{kind}/") for kind in ("train", "val")}


def spread(count: int, most: int, kept: int | None = None) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spread: `kept`, and with room the first and the last."""
    if count <= most:
        return list(range(count))
    some = [round(n * (count - 1) / (most - 1)) for n in range(most)] if most > 1 else [count - 1][:most]
    if some and kept is not None and kept not in some:
        some[min(range(1, most - 1) or [most - 1], key=lambda n: abs(some[n] - kept))] = kept
    return some


def _is_wrong(cell: str) -> bool:
    """Whether a cell holds no figure and should; NaN is a mean over nothing, such as of a step that was not drawn."""
    return number(cell) is None and cell.strip().lower() != "nan"


def _of_kind(rows: Sequence[tuple[float, dict[str, str]]], prefix: str) -> Curves:
    """The rows in which something of this kind was measured, and the columns in which anything was."""
    names = {key: None for _, row in rows for key, cell in row.items() if key.startswith(prefix) and cell}
    kept = [(step, row) for step, row in rows if any(number(row[name]) is not None for name in names)]
    columns = {name.removeprefix(prefix): [number(row[name]) for _, row in kept] for name in names}
    columns = {name: column for name, column in columns.items() if any(value is not None for value in column)}
    return Curves([step for step, _ in kept], [number(row.get("wall_seconds")) for _, row in kept], columns)
