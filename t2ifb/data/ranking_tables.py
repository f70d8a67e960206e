"""From rows of a table to rankings."""

from collections.abc import Iterable, Sequence
from os.path import normpath
from pathlib import Path

from t2ifb.data.faults import Fault, brief
from t2ifb.data.rankings import RankedPrompt
from t2ifb.data.tables import Row, locate

NEEDED = ("prompt", "image", "rank")
OPTIONAL = ("prompt_id", "split")


def group_rows(rows: Sequence[Row], root: Path) -> tuple[list[RankedPrompt], list[Fault], int]:
    """Put the rows of each ranking together: those with the same `prompt_id` or, without that column, `prompt`.

    Args:
        rows: In any order.
        root: What image paths are relative to.

    Returns:
        The rankings whose rows have no fault, in the order of their first rows; the faults; how many rankings there are
        in all.
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
    """What distinguishes the row's ranking from others; a row without prompt and id stands alone."""
    return row.text("prompt_id") or row.text("prompt") or row.place


def _group_faults(group: Sequence[Row]) -> Iterable[Fault]:
    for row in group:
        if _rank(row) is None:
            yield Fault(row.place, f"rank must be a whole number from 1 on, found {brief(row.text('rank'))!r}")
        if not row.text("prompt"):
            yield Fault(row.place, "empty prompt")
    first = group[0]
    for column in ("prompt", "split"):
        if len({row.text(column) for row in group}) > 1:
            name = brief(group_name(first))
            yield Fault(first.place, f"the rows of ranking {name!r} have different entries in {column}")
    names = [normpath(image.replace("\\", "/")) for row in group if (image := row.text("image"))]
    if len(set(names)) < len(names):
        people = "" if first.text("prompt_id") else "; if several people ranked it, give each a prompt_id of their own"
        yield Fault(first.place, f"the ranking has the same image twice{people}")


def _rank(row: Row) -> int | None:
    """The rank, also where a program wrote it as 1.0; None if it is no whole number."""
    try:
        rank = float(row.text("rank"))
    except ValueError:
        return None
    return int(rank) if rank.is_integer() else None
