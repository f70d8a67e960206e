"""A user's own rankings: a folder with a table of prompts, images and ranks."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from os.path import normpath
from pathlib import Path

from t2ifb.data.errors import BadRecord, OnError, brief, raise_or_skip
from t2ifb.data.prompts import hash_fraction
from t2ifb.data.rankings import RankedPrompt
from t2ifb.data.tables import READERS, Row, locate, read_table
from t2ifb.data.validation import check_once, memory_file

NEEDED = ("prompt", "image", "rank")
OPTIONAL = ("prompt_id", "split")


def group_rows(rows: Sequence[Row], root: Path) -> tuple[list[RankedPrompt], list[BadRecord], int]:
    """Group rows into rankings by `prompt_id` or, without that column, by `prompt`.

    Args:
        rows: Rows in any order.
        root: Root of the image paths.

    Returns:
        The rankings without errors, in the order of their first rows; the errors; the total number of rankings.
    """
    paths, errors = locate(rows, root)
    images = {row.place: path for row, path in zip(rows, paths, strict=True)}
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(group_name(row), []).append(row)
    rankings: list[RankedPrompt] = []
    for name, group in groups.items():
        found = list(_group_errors(group))
        errors += found
        there = [path for row in group if (path := images[row.place]) is not None]
        if not found and len(there) == len(group):
            ranks = tuple(rank for row in group if (rank := _rank(row)) is not None)
            rankings.append(RankedPrompt(name, group[0].text("prompt"), tuple(there), ranks))
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
        people = "" if first.text("prompt_id") else "; if several people ranked it, give each its own prompt_id"
        yield BadRecord(first.place, f"the ranking has the same image twice{people}")


def _rank(row: Row) -> int | None:
    """The rank as an integer, also if written as 1.0; None if it is not an integer."""
    try:
        rank = float(row.text("rank"))
    except ValueError:
        return None
    return int(rank) if rank.is_integer() else None


logger = logging.getLogger(__name__)

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


class OwnRankings:
    """Rankings in tables, one row per image, with the columns `prompt`, `image` and `rank` (1 is best, ties allowed).

    Image names are relative to the table. Rows with the same `prompt_id` form one ranking; without that column, rows
    with the same prompt do. The folder has one table per split (`train.csv`, `validation.json`, ...) or one for all,
    such as `rankings.csv`. In a common table the column `split` assigns the rankings. Without that column the prompts
    are split by a hash, so a prompt stays in its split when others are added. `read_table` lists the file formats.

    Attributes:
        errors: Errors per split; filled by `rankings`.
    """

    def __init__(
        self,
        source: str | Path,
        shares: Mapping[str, float] | None = None,
        seed: int = 0,
        cache_folder: str | Path | None = None,
        on_error: OnError = "error",
    ) -> None:
        """Store the settings. Nothing is read yet.

        Args:
            source: The folder.
            shares: Approximate share of the prompts per split, used if neither files nor a column define the splits; by
                default 0.8 `train`, 0.1 `validation` and 0.1 `test`.
            seed: Seed of the split by hash.
            cache_folder: Folder for the results of image checks; `source` by default.
            on_error: `error` stops on bad data, `skip` drops the affected rankings.

        Raises:
            ValueError: The shares do not add up to 1.
        """
        self.shares = dict(shares or SHARES)
        if any(share < 0 for share in self.shares.values()) or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(f"shares must be positive and add up to 1, got {self.shares}")
        self.source = Path(source).expanduser()
        self.seed = seed
        self.on_error = on_error
        self.cache_folder = Path(cache_folder).expanduser() if cache_folder is not None else None
        self.errors: dict[str, list[BadRecord]] = {}
        self._tables: dict[Path, list[Row]] = {}
        self._told = False

    @staticmethod
    def recognises(source: str) -> bool:
        """Whether a folder has a table of all splits, or one of `train` that is not JSON (HPDv2 has `train.json`)."""
        folder = Path(source).expanduser()
        names = {path.name.lower() for path in folder.iterdir()} if folder.is_dir() else set()
        tables = {f"{stem}{suffix}" for stem in ("rankings", "train") for suffix in READERS} - {"train.json"}
        return bool(names & tables)

    @property
    def missing_message(self) -> str:
        """Message for a missing split."""
        there = ""
        if (path := self._file("rankings")) is not None and self._has_splits(path):
            names = sorted({row.text("split") for row in self._rows(path)})
            there = f"{path} has the splits {', '.join(names)}. "
        return there + (
            f"Expected a table {self.source / '<split>.csv'}, or one for all splits, {self.source / 'rankings.csv'} "
            f"(or {', '.join(list(READERS)[1:])}), with the columns prompt, image and rank; give the folder as "
            "source."
        )

    def available(self, split: str) -> bool:
        """Whether a table with the split exists.

        Raises:
            ValueError: The table cannot be read, or two tables have the split.
        """
        if self._file(split) is not None:
            return True
        if (path := self._file("rankings")) is None:
            return False
        return split in ({row.text("split") for row in self._rows(path)} if self._has_splits(path) else self.shares)

    def rankings(self, split: str) -> list[RankedPrompt]:
        """The split's rankings in the order of the table. Images are decoded once, to find bad ones.

        Raises:
            ValueError: The split is missing, a table cannot be read, or errors were found and `on_error` is `error`.
        """
        if not self.available(split):
            raise ValueError(f"The split {split!r} is missing. {self.missing_message}")
        own, whole = self._file(split), self._file("rankings")
        if own is not None and whole is not None:
            raise ValueError(
                f"{self.source} has both {whole.name} and {own.name}, so a prompt could be in two splits; "
                f"keep one of them, or add a column split to {whole.name}"
            )
        path = own or whole
        assert path is not None
        rows = self._part(path, split) if own is None else self._rows(path)
        parsed, errors, total = group_rows(rows, path.parent)
        place = f"{path}, {split}"
        images = [image for ranking in parsed for image in ranking.images if isinstance(image, Path)]
        memory = memory_file(self.cache_folder or self.source, self.source, split)
        good, more = check_once(parsed, place, images, memory)
        self.errors[split] = [*errors, *more]
        raise_or_skip(self.errors[split], self.on_error, place, total - len(good), total)
        return good

    def _file(self, stem: str) -> Path | None:
        """The table with a given name, ignoring letter case."""
        names = {f"{stem}{suffix}".lower() for suffix in READERS}
        entries = self.source.iterdir() if self.source.is_dir() else ()
        found = sorted(path for path in entries if path.name.lower() in names and path.is_file())
        if len(found) > 1:
            raise ValueError(f"{self.source} has both {found[0].name} and {found[1].name}; keep one of them")
        return found[0] if found else None

    def _rows(self, path: Path) -> list[Row]:
        if path not in self._tables:
            self._tables[path] = read_table(path, NEEDED, OPTIONAL)
        return self._tables[path]

    def _has_splits(self, path: Path) -> bool:
        return any("split" in row.cells for row in self._rows(path))

    def _part(self, path: Path, split: str) -> list[Row]:
        """The rows of a split in a table of all splits."""
        rows = self._rows(path)
        if self._has_splits(path):
            if nowhere := [row.place for row in rows if not row.text("split")]:
                raise ValueError(f"{nowhere[0]}: the column split is empty; fill it in every row or in none")
            splits = [row.text("split") for row in rows]
        else:
            splits = [self._share(row) for row in rows]
            self._tell(path, rows, splits, split)
        names = {group_name(row) for row, where in zip(rows, splits, strict=True) if where == split}
        return [row for row in rows if group_name(row) in names]  # a ranking in two splits is an error in both

    def _tell(self, path: Path, rows: list[Row], splits: list[str], wanted: str) -> None:
        """Log once how many prompts each split received."""
        prompts = dict(zip((row.text("prompt") for row in rows), splits, strict=True))
        counts = {split: sum(where == split for where in prompts.values()) for split in self.shares}
        text = ", ".join(f"{count} prompts {split}" for split, count in counts.items())
        if not counts[wanted]:
            raise ValueError(
                f"{path} has no column split, and the split by hash left no prompts for {wanted} ({text}). Add the "
                "column split, use one file per split, or set other shares=… or another seed."
            )
        if not self._told:
            logger.warning("%s has no column split; its prompts are split by a hash: %s", path, text)
            self._told = True

    def _share(self, row: Row) -> str:
        """The split of a row's prompt."""
        place, border = hash_fraction(row.text("prompt"), self.seed), 0.0
        for name, share in self.shares.items():
            border += share
            if place < border:
                return name
        return name
