"""Preference files of all formats: which file has which split, and what its columns are."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2ifb.data.preferences.columns import ALIASES, PairColumns, checked_map, lower_map, pair_columns
from t2ifb.data.preferences.exports import (
    argilla_rows,
    label_studio_rows,
    list_columns,
    list_rows,
    question_of,
    ranker_rows,
)
from t2ifb.data.preferences.folders import SHARD, SPLITS, folder_rows
from t2ifb.data.preferences.labels import has_numbers
from t2ifb.data.preferences.pairs import label_values, pair_rows, vote_list
from t2ifb.data.storage.columnar import BUILDERS
from t2ifb.data.tables import READERS, Row, check_cells, read_table

NEEDED = ("prompt", "image", "rank")
OPTIONAL = ("prompt_id", "split", "annotator")
OF_LISTS = ("prompt", *OPTIONAL)
"""Roles that can be named in a table of lists, whose images and ranks have columns of their own."""
TASK = {"data", "annotations"}
"""Keys of a task in a Label Studio export."""


@dataclass(frozen=True)
class PreferenceFile:
    """Rows of one table, or of several with the same columns.

    Attributes:
        rows: Rows of images (`NEEDED`, `OPTIONAL`), or of pairs (`pair_rows`).
        pairs: Whether they are pairs.
        note: How the columns were understood, for the user; empty for a table of rankings.
    """

    rows: list[Row]
    pairs: bool
    note: str = ""

    @property
    def joined(self) -> bool:
        """Whether several rows may be answers on the same images."""
        return self.pairs or any(row.text("annotator") for row in self.rows)


def split_files(source: Path) -> dict[str | None, tuple[Path, ...]]:
    """Files of each split; None stands for files that hold all splits.

    Args:
        source: A file for all splits; or a folder with `<split>.<suffix>` or `rankings.<suffix>`, with parquet or tar
            shards (in the folder, in `data` or in a folder per split; if all are of `train` they hold all splits), with
            one table of any name, or with better and worse images.

    Raises:
        ValueError: There are two files for a split, or several tables whose splits are unknown.
    """
    if source.is_file():
        return {None: (source,)}
    entries = sorted(source.iterdir()) if source.is_dir() else []
    tables = [path for path in entries if path.is_file() and path.suffix.lower() in READERS]
    found: dict[str | None, tuple[Path, ...]] = {}
    for path in tables:
        if (stem := path.stem.lower()) in ("rankings", *SPLITS) or len(tables) > 1:
            split = None if stem == "rankings" else SPLITS.get(stem, stem)
            if split in found:
                raise ValueError(f"{source} has both {found[split][0].name} and {path.name}; keep one of them")
            found[split] = (path,)
    named = {split for split in found if split is None or split in SPLITS}
    if named:
        return found
    shards = _shards([source, source / "data", *(path for path in entries if path.is_dir() and SHARD.match(path.name))])
    if shards:
        return shards
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise ValueError(f"{source} has several tables ({names}); give one of them as source, or name it rankings")
    return {None: (tables[0] if tables else source,)} if tables or folder_rows(source) else {}


def _shards(folders: Sequence[Path]) -> dict[str | None, tuple[Path, ...]]:
    """Shards by the split that begins their own name or their folder's."""
    found: dict[str | None, list[Path]] = {}
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix.lower() in BUILDERS and path.is_file():
                name = SHARD.match(path.name) or (SHARD.match(folder.name) if folder is not folders[0] else None)
                split = name[1].lower() if name else None
                found.setdefault(SPLITS[split] if split else None, []).append(path)
    if set(found) == {"train"}:
        found = {None: found["train"]}
    return {split: tuple(paths) for split, paths in found.items()}


def read_preferences(
    paths: Sequence[Path],
    columns: Mapping[str, str | None] | None = None,
    labels: Mapping[str, Any] | None = None,
    others: Sequence[Sequence[Path]] = (),
) -> PreferenceFile:
    """Read preferences and find out what they are from their columns.

    Rows of images with ranks, lists of images and ranks (ImageReward), pairs with a label, votes or names of the
    preferred image (`pair_columns`), exports of Argilla and Label Studio, and folders (`folder_rows`).

    Args:
        paths: Tables with the same columns, or one folder.
        columns: Columns by role, where their names do not say it.
        labels: Labels by meaning, where they do not say it.
        others: Tables of the other splits of the same source. Numbers as labels are understood from all tables
            together, so that they mean the same in each. A table that cannot be read is an error of its own split.

    Raises:
        ValueError: The files cannot be read, or their columns are none of these; the message lists the columns found.
    """
    given = dict(columns or {})
    table = _read(paths, given)
    if isinstance(table, PreferenceFile):
        return table
    rows, form = table
    more: list[Any] = []
    if not labels and has_numbers(label_values(rows, form)):
        for other in others:
            with suppress(ValueError):
                if not isinstance(found := _read(other, given), PreferenceFile):
                    more += label_values(*found)
    return _pairs(rows, form, labels, more)


def _read(paths: Sequence[Path], given: Mapping[str, str | None]) -> PreferenceFile | tuple[list[Row], PairColumns]:
    """Rankings, or the rows and columns of pairs whose choices are still to be understood."""
    if paths[0].is_dir():
        if given:
            raise ValueError(f"{paths[0]}: folders of images have no columns; leave columns out")
        rows = folder_rows(paths[0])
        split = {"split": "split"} if any("split" in row.cells for row in rows) else {}
        named = {"prompt": "prompt", "first": "chosen", "second": "rejected"} | split
        return rows, PairColumns("folders of images", named, True)

    def accepts(there: list[str]) -> bool:
        if set(NEEDED) <= set(_renamed(there, given)) or set(there) >= TASK:
            return True
        if list_columns(there) is not None or question_of(there) is not None:
            return True
        return pair_columns(there, given) is not None

    rows = [row for path in paths for row in read_table(path, NEEDED, OPTIONAL, accepts)]
    there = list(dict.fromkeys(column for row in rows for column in row.cells))
    if (lists := list_columns(there)) is not None:
        checked_map(there, given, OF_LISTS)
        return _rankings(list_rows(rows, lists), given, f"read as lists of images and ranks ({', '.join(lists)})")
    if set(NEEDED) <= set(_renamed(there, given)):
        checked_map(there, given, (*NEEDED, *OPTIONAL))
        return _rankings(rows, given)
    if set(there) >= TASK:
        if ranked := ranker_rows(rows):
            prompt = next((name for name in ALIASES["prompt"] if name in ranked[0].cells), None)
            named = ({"prompt": prompt} if prompt else {}) | checked_map(list(ranked[0].cells), given, OF_LISTS)
            if "prompt" not in named:
                raise ValueError(f"{ranked[0].place}: no column with the prompt; name it with columns={{prompt: …}}")
            return _rankings(ranked, named, "read as Label Studio export with rankings")
        return _export("Label Studio export", label_studio_rows(rows), given)
    if (question := question_of(there)) is not None:
        return _export(f"Argilla export, question {question}", argilla_rows(rows, question), given)
    try:
        pairs = pair_columns(_guessable(rows, there, given), given)
    except ValueError as error:
        raise ValueError(f"{paths[0]}: {error}") from error
    assert pairs is not None  # `accepts` checked it
    return rows, pairs


def _guessable(rows: Sequence[Row], columns: Sequence[str], given: Mapping[str, str | None]) -> list[str]:
    """The columns without those that have the name of a list of votes but hold something else, such as their number."""
    named = {*lower_map(given).values()}
    lists = {name for name in ALIASES["votes"] if any(isinstance(vote_list(row.cells.get(name)), list) for row in rows)}
    return [column for column in columns if column not in ALIASES["votes"] or column in named | lists]


def _renamed(columns: Sequence[str] | Mapping[str, Any], given: Mapping[str, str | None]) -> list[str]:
    """Column names with those of `given` replaced by the roles of a table of rankings.

    A column that has the name of a given role but is not meant gets an empty name.
    """
    roles = {column: role for role, column in lower_map(given).items() if role in (*NEEDED, *OPTIONAL)}
    return [roles.get(column, "" if column in roles.values() else column) for column in columns]


def _rankings(rows: Sequence[Row], given: Mapping[str, str | None], note: str = "") -> PreferenceFile:
    """A table of rankings, with the columns of `given` renamed."""
    renamed = [Row(row.place, dict(zip(_renamed(row.cells, given), row.cells.values(), strict=True))) for row in rows]
    check_cells(renamed, (*NEEDED, *OPTIONAL))
    return PreferenceFile(_with_splits(renamed), False, note)


def _with_splits(rows: Sequence[Row]) -> list[Row]:
    """The rows with the usual names of splits."""
    given = {place: row.text("split") for place, row in enumerate(rows) if "split" in row.cells}
    splits = {place: {"split": SPLITS.get(name.lower(), name)} for place, name in given.items()}
    return [Row(row.place, row.cells | splits.get(place, {})) for place, row in enumerate(rows)]


def _export(name: str, rows: list[Row], given: Mapping[str, str | None]) -> tuple[list[Row], PairColumns]:
    """Pairs of an annotation tool's export.

    Raises:
        ValueError: It has no answers, or no two images.
    """
    if not rows:
        raise ValueError(f"the {name} has no submitted answers")
    there = list(dict.fromkeys(column for row in rows for column in row.cells))
    form = pair_columns(_guessable(rows, there, given), given)
    if form is None:
        names = ", ".join(rows[0].cells)
        raise ValueError(f"{rows[0].place}: no two images in the {name}; name them with columns; found {names}")
    return rows, PairColumns(name, form.columns, form.ordered)


def _pairs(
    rows: Sequence[Row], form: PairColumns, labels: Mapping[str, Any] | None, others: Sequence[Any]
) -> PreferenceFile:
    try:
        pairs, empty, meaning = pair_rows(rows, form, labels, others)
    except ValueError as error:
        raise ValueError(f"{rows[0].place.rpartition(', ')[0]}: {error}") from error
    check_cells(pairs, ("prompt", "first", "second", "prompt_id", "split"))
    notes = [f"read as {form}", meaning, f"{empty} of {len(rows)} rows have no choice and are skipped" if empty else ""]
    return PreferenceFile(_with_splits(pairs), True, "; ".join(note for note in notes if note))
