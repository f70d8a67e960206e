"""Convert rows of a table to rankings."""

from collections.abc import Iterable, Sequence
from os.path import normpath
from pathlib import Path

from t2ifb.data.faults import Fault, brief
from t2ifb.data.rankings import RankedPrompt
from t2ifb.data.tables import Row, locate

NEEDED = ("prompt", "image", "rank")
OPTIONAL = ("prompt_id", "split")


def group_rows(rows: Sequence[Row], root: Path) -> tuple[list[RankedPrompt], list[Fault], int]:
    """Group rows into rankings by `prompt_id` or, without that column, by `prompt`.

    Args:
        rows: Rows in any order.
        root: Root of the image paths.

    Returns:
        The rankings without faults, in the order of their first rows; the faults; the total number of rankings.
    """
    paths, faults = locate(rows, root)
    images = {row.place: path for row, path in zip(rows, paths, strict=True)}
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(group_name(row), []).append(row)
    rankings: list[RankedPrompt] = []
    for name, group in groups.items():
        found = list(_group_faults(group))
        faults += found
        there = [path for row in group if (path := images[row.place]) is not None]
        if not found and len(there) == len(group):
            ranks = tuple(rank for row in group if (rank := _rank(row)) is not None)
            rankings.append(RankedPrompt(name, group[0].text("prompt"), tuple(there), ranks))
    return rankings, faults, len(groups)


def group_name(row: Row) -> str:
    """Key of the row's ranking. A row without prompt and id forms its own."""
    return row.text("prompt_id") or row.text("prompt") or row.place


def _group_faults(group: Sequence[Row]) -> Iterable[Fault]:
    for row in group:
        if _rank(row) is None:
            yield Fault(row.place, f"rank must be an integer of at least 1, found {brief(row.text('rank'))!r}")
        if not row.text("prompt"):
            yield Fault(row.place, "empty prompt")
    first = group[0]
    for column in ("prompt", "split"):
        if len({row.text(column) for row in group}) > 1:
            name = brief(group_name(first))
            yield Fault(first.place, f"the rows of ranking {name!r} have different values in {column}")
    names = [normpath(image.replace("\\", "/")) for row in group if (image := row.text("image"))]
    if len(set(names)) < len(names):
        people = "" if first.text("prompt_id") else "; if several people ranked it, give each its own prompt_id"
        yield Fault(first.place, f"the ranking has the same image twice{people}")


def _rank(row: Row) -> int | None:
    """The rank as an integer, also if written as 1.0; None if it is not an integer."""
    try:
        rank = float(row.text("rank"))
    except ValueError:
        return None
    return int(rank) if rank.is_integer() else None
