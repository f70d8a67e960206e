"""Tables with one row per comparison, and votes of several annotators on the same images."""

import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from t2ifb.data.errors import BadRecord
from t2ifb.data.preferences.columns import PairColumns
from t2ifb.data.preferences.labels import Labels, to_number, two_votes
from t2ifb.data.rankings import Image, RankedPrompt, Votes
from t2ifb.data.tables import Row, locate

KEPT = ("prompt", "first", "second", "prompt_id", "split", "annotator")
"""Cells of a row of `pair_rows`, beside `votes` (a pair of numbers) and `problem` (why it has none)."""


def pair_rows(
    rows: Sequence[Row], form: PairColumns, labels: Mapping[str, Any] | None = None, others: Sequence[Any] = ()
) -> tuple[list[Row], int, str]:
    """Give all tables of pairs the same columns.

    Args:
        rows: Rows of a table.
        form: Its columns.
        labels: Meaning of the labels; see `Labels`.
        others: Labels of other tables of the same source, from which numbers are understood too.

    Returns:
        Rows with the cells `KEPT`, the number of rows without a choice, which are left out, and how numbers in the
        label column are understood.

    Raises:
        ValueError: The labels are ambiguous.
    """
    columns = form.columns
    names = (columns["first"], columns["second"])
    meaning = Labels([*label_values(rows, form), *others], names, labels)
    signed = _are_signed(rows, form)
    kept: list[Row] = []
    for row in rows:
        cells: dict[str, Any] = {role: row.cells.get(columns[role]) for role in KEPT if role in columns}
        try:
            votes = _votes(row, form, meaning, signed)
        except ValueError as error:
            votes, cells["problem"] = (0.0, 0.0), str(error)
        if votes is not None:
            kept.append(Row(row.place, cells | {"votes": votes}))
    return kept, len(rows) - len(kept), str(meaning)


def label_values(rows: Sequence[Row], form: PairColumns) -> list[Any]:
    """The cells of the label column; none without that column."""
    return [row.cells.get(form.columns["label"]) for row in rows] if "label" in form.columns else []


def _are_signed(rows: Sequence[Row], form: PairColumns) -> bool:
    """Whether the columns `pref…` of a table hold preferences, such as -1, 0 and 1, and not numbers of votes.

    They do if one of them is negative, or if all are from 0 to 1.
    """
    columns = [form.columns.get(role, "") for role in ("votes_first", "votes_second")]
    numbers = [number for row in rows for column in columns if (number := to_number(row.cells.get(column))) is not None]
    return columns[0].startswith("pref") and (any(n < 0 for n in numbers) or all(n <= 1 for n in numbers))


def _votes(row: Row, form: PairColumns, meaning: Labels, signed: bool) -> tuple[float, float] | None:
    """Votes for both images of a row; None without a choice.

    A confidence p gives p of a vote to the preferred image and the rest to the other. A weight multiplies the votes.
    """
    columns = form.columns
    if "labelled" in columns and row.text(columns["labelled"]).lower() in ("0", "0.0", "false"):
        return None
    listed = vote_list(row.cells.get(columns["votes"])) if "votes" in columns else None
    if "votes_first" in columns:
        first, second = columns["votes_first"], columns["votes_second"]
        votes = two_votes(row.cells.get(first), row.cells.get(second), signed)
    elif listed is not None:
        if not isinstance(listed, (list, tuple)) or len(listed) != 2:
            raise ValueError(f"{columns['votes']} must be a list of two numbers of votes")
        votes = two_votes(*listed)
    else:
        label = row.cells.get(columns["label"]) if "label" in columns else None
        votes = (1.0, 0.0) if form.ordered else meaning.votes(label)
        if votes is not None and "confidence" in columns and row.text(columns["confidence"]):
            sure = _number_of(row, columns["confidence"])
            if not 0.5 <= sure <= 1:
                raise ValueError(f"{columns['confidence']} must be from 0.5 to 1, found {sure:g}")
            votes = tuple(sure * one + (1 - sure) * (1 - one) for one in votes)  # type: ignore[assignment]
    if votes is not None and "weight" in columns and row.text(columns["weight"]):
        if not 0 < (weight := _number_of(row, columns["weight"])) < math.inf:
            raise ValueError(f"{columns['weight']} must be above 0 and finite, found {weight:g}")
        votes = weight * votes[0], weight * votes[1]
    return votes


def vote_list(cell: Any) -> Any:
    """The cell; of a list in a text, such as `[3, 1]`, the list."""
    if isinstance(cell, str) and cell.strip().startswith("["):
        with suppress(ValueError):
            return json.loads(cell)
    return cell if cell != "" else None


def _number_of(row: Row, column: str) -> float:
    try:
        return float(row.text(column))
    except ValueError:
        raise ValueError(f"{column} must be a number, found {row.text(column)!r}") from None


def rank_pairs(rows: Sequence[Row], root: Path) -> tuple[list[RankedPrompt], list[BadRecord]]:
    """Rankings of two images, one for each row of `pair_rows`, and the errors of the other rows.

    Args:
        rows: Rows of `pair_rows`.
        root: Root of the image names.
    """
    ends = [Row(row.place, {"image": row.cells.get(side)}) for row in rows for side in ("first", "second")]
    images, errors = locate(ends, root)
    rankings: list[RankedPrompt] = []
    seen: dict[str, int] = {}
    for row, first, second in zip(rows, images[::2], images[1::2], strict=True):
        problems = [row.cells["problem"]] if "problem" in row.cells else []
        if not row.text("prompt"):
            problems.append("empty prompt")
        if first is not None and first == second:
            problems.append("the pair has the same image twice")
        errors += [BadRecord(row.place, problem) for problem in problems]
        if not problems and first is not None and second is not None:
            one, two = row.cells["votes"]
            votes = () if {one, two} == {0.0, 1.0} else (Votes(0, 1, one, two),)
            prompt_id = row.text("prompt_id") or row.place
            seen[prompt_id] = seen.get(prompt_id, 0) + 1
            if seen[prompt_id] > 1:
                prompt_id = f"{prompt_id}, answer {seen[prompt_id]}"
            ranks = ranks_of((Votes(0, 1, one, two),), 2)
            rankings.append(RankedPrompt(prompt_id, row.text("prompt"), (first, second), ranks, votes))
    return rankings, errors


def ranks_of(votes: Sequence[Votes], images: int) -> tuple[int, ...]:
    """Ranks (1 is best) of images by the sum of their shares of the votes on each pair (Borda's count)."""
    sums = [0.0] * images
    for each in votes:
        total = each.for_first + each.for_second
        sums[each.first] += each.for_first / total
        sums[each.second] += each.for_second / total
    rounded = [round(score, 9) for score in sums]
    order = sorted(set(rounded), reverse=True)
    return tuple(order.index(score) + 1 for score in rounded)


def join_annotators(
    rankings: Sequence[RankedPrompt], content: Callable[[Sequence[Image]], Sequence[Hashable]]
) -> tuple[list[RankedPrompt], int, int]:
    """Join rankings of the same prompt and images into one with the votes of all.

    Args:
        rankings: Rankings, one for each answer.
        content: Gives for images that lie in a table what is equal for equal ones, wherever they lie.

    Returns:
        The rankings in the order of their first answers, the number of pairs of images that several answers compare,
        and how many of these pairs have answers that contradict each other.
    """
    groups: dict[tuple[str, frozenset[Image]], list[RankedPrompt]] = {}
    for ranking in _with_equal_images(rankings, content):
        groups.setdefault((ranking.prompt, frozenset(ranking.images)), []).append(ranking)
    joined: list[RankedPrompt] = []
    repeated = contradicting = 0
    for group in groups.values():
        if len(group) == 1:
            joined.append(group[0])
            continue
        images, votes = group[0].images, []
        for first, second in combinations(range(len(images)), 2):
            answers = [_answer(ranking, images[first], images[second]) for ranking in group]
            if given := [answer for answer in answers if answer is not None]:
                votes.append(Votes(first, second, sum(one for one, _ in given), sum(two for _, two in given)))
                repeated += len(given) > 1
                contradicting += any(a > b for a, b in given) and any(b > a for a, b in given)
        joined.append(replace(group[0], ranks=ranks_of(votes, len(images)), votes=tuple(votes)))
    return joined, repeated, contradicting


def _with_equal_images(
    rankings: Sequence[RankedPrompt], content: Callable[[Sequence[Image]], Sequence[Hashable]]
) -> list[RankedPrompt]:
    """The rankings, with the first of equal images in tables in place of the others, for prompts that occur again."""
    often = Counter(ranking.prompt for ranking in rankings)
    images = [
        image
        for image in dict.fromkeys(i for ranking in rankings if often[ranking.prompt] > 1 for i in ranking.images)
        if not isinstance(image, Path)
    ]
    firsts: dict[Hashable, Image] = {}
    equal: dict[Image, Image] = {
        image: firsts.setdefault(key, image) for image, key in zip(images, content(images), strict=True)
    }
    return [
        replace(ranking, images=tuple(equal.get(i, i) for i in ranking.images))
        if often[ranking.prompt] > 1
        else ranking
        for ranking in rankings
    ]


def _answer(ranking: RankedPrompt, first: Image, second: Image) -> tuple[float, float] | None:
    """Votes for two images in one ranking; None if it does not compare them."""
    one, two = ranking.images.index(first), ranking.images.index(second)
    if not ranking.votes:
        better = ranking.ranks[two] - ranking.ranks[one]
        return (1.0, 0.0) if better > 0 else (0.0, 1.0) if better < 0 else (0.5, 0.5)
    for votes in ranking.votes:
        if (votes.first, votes.second) == (one, two):
            return votes.for_first, votes.for_second
        if (votes.first, votes.second) == (two, one):
            return votes.for_second, votes.for_first
    return None
