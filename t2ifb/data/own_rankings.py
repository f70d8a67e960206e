"""One's own rankings: a folder with a table of prompts, images and ranks."""

import logging
from collections.abc import Mapping
from pathlib import Path

from t2ifb.data.checked_images import check_once, memory_file
from t2ifb.data.faults import Fault, OnFault, settle
from t2ifb.data.ranking_tables import NEEDED, OPTIONAL, group_name, group_rows
from t2ifb.data.rankings import RankedPrompt
from t2ifb.data.shares import position
from t2ifb.data.tables import READERS, Row, read_table

logger = logging.getLogger(__name__)

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


class OwnRankings:
    """Rankings in tables, one row an image, with the columns `prompt`, `image` and `rank` (1 is best, ties allowed).

    Images are named relative to the table. Rows with the same `prompt_id`, or without that column the same prompt, are
    one ranking. The folder has a table for each split (`train.csv`, `validation.json`, ...) or one for all, such as
    `rankings.csv`; in that one a column `split` says where a ranking belongs, and without it the prompts are shared
    out by a hash: a prompt stays in its split when others are added. `read_table` says which files are tables.

    Attributes:
        faults: By split, what was found; filled by `rankings`.
    """

    def __init__(
        self,
        source: str | Path,
        shares: Mapping[str, float] | None = None,
        seed: int = 0,
        cache_folder: str | Path | None = None,
        on_fault: OnFault = "error",
    ) -> None:
        """Name the folder; nothing is read yet.

        Args:
            source: The folder.
            shares: About which part of the prompts each split gets, where neither files nor a column say so; by
                default 0.8 `train`, 0.1 `validation` and 0.1 `test`.
            seed: Of the sharing out.
            cache_folder: Where to remember what is known of checked images; in the folder by default.
            on_fault: `error` stops on bad data, `skip` leaves out the rankings that have it.

        Raises:
            ValueError: The shares do not add up to 1.
        """
        self.shares = dict(shares or SHARES)
        if any(share < 0 for share in self.shares.values()) or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(f"shares must be positive and add up to 1, got {self.shares}")
        self.source = Path(source).expanduser()
        self.seed = seed
        self.on_fault = on_fault
        self.cache_folder = Path(cache_folder).expanduser() if cache_folder is not None else None
        self.faults: dict[str, list[Fault]] = {}
        self._tables: dict[Path, list[Row]] = {}
        self._told = False

    @property
    def missing_message(self) -> str:
        """What to tell when a split is not available."""
        there = ""
        if (path := self._file("rankings")) is not None and self._has_splits(path):
            names = sorted({row.text("split") for row in self._rows(path)})
            there = f"{path} has the splits {', '.join(names)}. "
        return there + (
            f"Expected a table {self.source / '<split>.csv'}, or one for all splits, {self.source / 'rankings.csv'} "
            f"(or {', '.join(list(READERS)[1:])}), with the columns prompt, image and rank; name the folder by "
            "`dataset.source=<folder>`."
        )

    def available(self, split: str) -> bool:
        """Whether there is a table with the split.

        Raises:
            ValueError: There is one, but it cannot be read, or there are two.
        """
        if self._file(split) is not None:
            return True
        if (path := self._file("rankings")) is None:
            return False
        return split in ({row.text("split") for row in self._rows(path)} if self._has_splits(path) else self.shares)

    def rankings(self, split: str) -> list[RankedPrompt]:
        """The split's rankings in the order of the table. Every image is decoded once, ever, to find bad ones.

        Raises:
            ValueError: There is no such split, a table cannot be read, or there are faults and `on_fault` is `error`.
        """
        if not self.available(split):
            raise ValueError(f"The split {split!r} is missing. {self.missing_message}")
        own, whole = self._file(split), self._file("rankings")
        if own is not None and whole is not None:
            raise ValueError(
                f"{self.source} has both {whole.name} and {own.name}, and a prompt could be trained and tested on; "
                f"leave one of them, or add a column split to {whole.name}"
            )
        path = own or whole
        assert path is not None
        rows = self._part(path, split) if own is None else self._rows(path)
        parsed, faults, total = group_rows(rows, path.parent)
        place = f"{path}, {split}"
        images = [image for ranking in parsed for image in ranking.images if isinstance(image, Path)]
        memory = memory_file(self.cache_folder or self.source, self.source, split)
        good, more = check_once(parsed, place, images, memory)
        self.faults[split] = [*faults, *more]
        settle(self.faults[split], self.on_fault, place, total - len(good), total)
        return good

    def _file(self, stem: str) -> Path | None:
        """The table of a name, whatever its letter case."""
        names = {f"{stem}{suffix}".lower() for suffix in READERS}
        entries = self.source.iterdir() if self.source.is_dir() else ()
        found = sorted(path for path in entries if path.name.lower() in names and path.is_file())
        if len(found) > 1:
            raise ValueError(f"{self.source} has both {found[0].name} and {found[1].name}; leave one of them")
        return found[0] if found else None

    def _rows(self, path: Path) -> list[Row]:
        if path not in self._tables:
            self._tables[path] = read_table(path, NEEDED, OPTIONAL)
        return self._tables[path]

    def _has_splits(self, path: Path) -> bool:
        return any("split" in row.cells for row in self._rows(path))

    def _part(self, path: Path, split: str) -> list[Row]:
        """The rows of a split's rankings in a table that holds all splits."""
        rows = self._rows(path)
        if self._has_splits(path):
            if nowhere := [row.place for row in rows if not row.text("split")]:
                raise ValueError(f"{nowhere[0]}: no split, but other rows have one; fill in the column split")
            splits = [row.text("split") for row in rows]
        else:
            splits = [self._share(row) for row in rows]
            self._tell(path, rows, splits, split)
        names = {group_name(row) for row, where in zip(rows, splits, strict=True) if where == split}
        return [row for row in rows if group_name(row) in names]  # a ranking in two splits shows in both, as a fault

    def _tell(self, path: Path, rows: list[Row], splits: list[str], wanted: str) -> None:
        """Say once how the prompts were shared out."""
        prompts = dict(zip((row.text("prompt") for row in rows), splits, strict=True))
        counts = {split: sum(where == split for where in prompts.values()) for split in self.shares}
        text = ", ".join(f"{count} prompts {split}" for split, count in counts.items())
        if not counts[wanted]:
            raise ValueError(
                f"{path} has no splits, and sharing its prompts out by a hash left none for {wanted} ({text}). Add a "
                "column split, give files for the splits, or set other dataset.shares or another dataset.seed."
            )
        if not self._told:
            logger.warning("%s has no splits; its prompts are shared out by a hash: %s", path, text)
            self._told = True

    def _share(self, row: Row) -> str:
        """The split that a row's prompt falls into."""
        place, border = position(row.text("prompt"), self.seed), 0.0
        for name, share in self.shares.items():
            border += share
            if place < border:
                return name
        return name
