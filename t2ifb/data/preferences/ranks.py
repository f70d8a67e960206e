"""Tables with one row per image: prompt, image and rank."""

from collections.abc import Iterable, Sequence
from os.path import normpath
from pathlib import Path

from t2ifb.data.errors import BadRecord, brief
from t2ifb.data.rankings import Image, RankedPrompt, Votes
from t2ifb.data.tables import Row, locate


def group_rows(rows: Sequence[Row], root: Path) -> tuple[list[RankedPrompt], list[BadRecord], int]:
    """Group rows into rankings by `prompt_id` or, without that column, by `prompt`, and by `annotator`.

    An annotator's tie of two images is half a vote for each, as in a table of pairs.

    Args:
        rows: Rows in any order.
        root: Root of the image paths.

    Returns:
        The rankings without errors, in the order of their first rows; the errors; the total number of rankings.
    """
    paths, errors = locate(rows, root)
    images = dict(zip(map(id, rows), paths, strict=True))
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((group_name(row), row.text("annotator")), []).append(row)
    rankings: list[RankedPrompt] = []
    for (name, annotator), group in groups.items():
        found = list(_group_errors(group))
        errors += found
        there: list[Image] = [image for row in group if (image := images[id(row)]) is not None]
        if not found and len(there) == len(group):
            ranks = tuple(rank for row in group if (rank := _rank(row)) is not None)
            prompt_id = f"{name}, {annotator}" if annotator else name
            tie = bool(annotator) and len(ranks) == 2 and ranks[0] == ranks[1]
            votes = (Votes(0, 1, 0.5, 0.5),) if tie else ()
            rankings.append(RankedPrompt(prompt_id, group[0].text("prompt"), tuple(there), ranks, votes))
    return rankings, errors, len(groups)


def group_name(row: Row) -> str:
    """Key of the row's ranking. A row without prompt and id forms its own."""
    return row.text("prompt_id") or row.text("prompt") or row.place


def _group_errors(group: Sequence[Row]) -> Iterable[BadRecord]:
    for row in group:
        if _rank(row) is None:
            yield BadRecord(row.place, f"rank must be an integer of at least 1, found {brief(row.text('rank'))!r}")
        if not row.text("prompt"):
            yield BadRecord(row.place, "empty prompt")
    first = group[0]
    for column in ("prompt", "split"):
        if len({row.text(column) for row in group}) > 1:
            name = brief(group_name(first))
            yield BadRecord(first.place, f"the rows of ranking {name!r} have different values in {column}")
    names = [normpath(image.replace("\\", "/")) for row in group if (image := row.text("image"))]
    if len(set(names)) < len(names):
        people = "" if first.text("annotator") else "; if several people ranked it, add a column annotator"
        yield BadRecord(first.place, f"the ranking has the same image twice{people}")


def _rank(row: Row) -> int | None:
    """The rank as an integer, also if written as 1.0; None if it is not an integer."""
    try:
        rank = float(row.text("rank"))
    except ValueError:
        return None
    return int(rank) if rank.is_integer() else None
