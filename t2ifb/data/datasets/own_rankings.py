"""A user's own preferences: tables of rankings or pairs, exports of annotation tools, and folders of images."""

import logging
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from t2ifb.data.content_keys import ImageKeys
from t2ifb.data.errors import BadRecord, OnError, raise_or_skip
from t2ifb.data.preferences.files import PreferenceFile, read_preferences, split_files
from t2ifb.data.preferences.folders import folder_rows
from t2ifb.data.preferences.pairs import join_annotators, rank_pairs
from t2ifb.data.preferences.ranks import group_name, group_rows
from t2ifb.data.prompts import hash_fraction, spelled_alike
from t2ifb.data.rankings import RankedPrompt
from t2ifb.data.tables import READERS, Row
from t2ifb.data.validation import check_once, image_files, memory_file
from t2ifb.utils.files import data_folder

logger = logging.getLogger(__name__)

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


class OwnRankings:
    """Preferences in tables, exports or folders; `read_preferences` lists the formats.

    A table of rankings has one row per image with the columns `prompt`, `image` and `rank` (1 is best, ties allowed),
    and perhaps `prompt_id`, `annotator` and `split`. A table of pairs has two images and a label or votes in each row.
    Image names are relative to the table. Answers of several annotators on the same images are joined, and their votes
    become targets and weights of the Bradley-Terry loss.

    `source` is a file, or a folder with one table per split (`train.csv`, `validation.json`, ...), with one for all,
    such as `rankings.csv` or a single table of any name, with parquet or tar shards named after their splits, or with
    folders of better and worse images. In data for all splits the column `split` assigns the rows; without that column
    the prompts are split by a hash, so a prompt stays in its split when others are added; only while there are few,
    prompts are lent to a split that would have too few.

    Attributes:
        errors: Errors per split; filled by `rankings`.
        contradicting: Pairs of images with contradicting answers, per split; filled by `rankings`.
    """

    def __init__(
        self,
        source: str | Path,
        columns: Mapping[str, str | None] | None = None,
        labels: Mapping[str, Any] | None = None,
        shares: Mapping[str, float] | None = None,
        seed: int = 0,
        cache_folder: str | Path | None = None,
        on_error: OnError = "error",
    ) -> None:
        """Store the settings. Nothing is read yet.

        Args:
            source: The folder or file.
            columns: Columns by role, such as `{"prompt": "caption", "first": "img_x", "second": "img_y", "label":
                "best"}`, where their names do not say it; `ROLES` in `t2ifb.data.preferences.columns` lists the roles.
                None, such as `{"weight": None}`, means that there is no such column, though a name looks like it.
            labels: Labels that mean `first`, `second` and `tie`, where the labels themselves do not say it.
            shares: Approximate share of the prompts per split, used if neither files nor a column define the splits; by
                default 0.8 `train`, 0.1 `validation` and 0.1 `test`.
            seed: Seed of the split by hash.
            cache_folder: Folder for the results of image checks; the source's folder by default.
            on_error: `error` stops on bad data, `skip` drops the affected rankings.

        Raises:
            ValueError: The shares do not add up to 1.
        """
        self.shares = dict(shares or SHARES)
        if any(share < 0 for share in self.shares.values()) or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(f"shares must be positive and add up to 1, got {self.shares}")
        self.source = Path(source).expanduser()
        self.columns, self.labels = dict(columns or {}), dict(labels or {})
        self.seed = seed
        self.on_error = on_error
        self.folder = self.source.parent if self.source.is_file() else self.source
        self.cache_folder = Path(cache_folder).expanduser() if cache_folder is not None else None
        self.errors: dict[str, list[BadRecord]] = {}
        self.contradicting: dict[str, int] = {}
        self._read: dict[tuple[Path, ...], PreferenceFile] = {}
        self._told = False

    @staticmethod
    def recognises(source: str) -> bool:
        """Whether it is a table, or a folder with pairs of images, a table of all splits, or one of `train`.

        `train.json` in a folder is none, because HPDv2 has one.
        """
        path = Path(source).expanduser()
        names = {entry.name.lower() for entry in path.iterdir()} if path.is_dir() else set()
        tables = {f"{stem}{suffix}" for stem in ("rankings", "train") for suffix in READERS} - {"train.json"}
        return bool(names & tables) or (path.is_file() and path.suffix.lower() in READERS) or bool(folder_rows(path))

    @property
    def missing_message(self) -> str:
        """Message for a missing split."""
        there = ""
        found = split_files(self.source)
        if None in found and self._has_splits(rows := self._table(found[None]).rows):
            names = sorted({row.text("split") for row in rows})
            there = f"{self.source} has the splits {', '.join(names)}. "
        return there + (
            f"Expected a table {self.source / '<split>.csv'}, or one for all splits, {self.source / 'rankings.csv'} "
            f"(or {', '.join(list(READERS)[1:])}), with the columns prompt, image and rank, or pairs of images in one "
            "of the formats of the guide Data; give the folder or the file as source."
        )

    def available(self, split: str) -> bool:
        """Whether data of the split exist.

        Raises:
            ValueError: The data cannot be read, or two tables have the split.
        """
        found = split_files(self.source)
        if split in found:
            return True
        if None not in found:
            return False
        rows = self._table(found[None]).rows
        return split in ({row.text("split") for row in rows} if self._has_splits(rows) else self.shares)

    def rankings(self, split: str) -> list[RankedPrompt]:
        """The split's rankings in the order of the data. Images are decoded once, to find bad ones.

        Raises:
            ValueError: The split is missing, a table cannot be read, or errors were found and `on_error` is `error`.
        """
        if not self.available(split):
            raise ValueError(f"The split {split!r} is missing. {self.missing_message}")
        found = split_files(self.source)
        if split in found and None in found:
            raise ValueError(
                f"{self.source} has both {found[None][0].name} and {found[split][0].name}, so a prompt could be in two "
                f"splits; keep one of them, or add a column split to {found[None][0].name}"
            )
        paths = found.get(split) or found[None]
        table = self._table(paths)
        rows = table.rows if split in found else self._part(table, paths, split)
        root = paths[0] if paths[0].is_dir() else paths[0].parent
        if table.pairs:
            (parsed, errors), total = rank_pairs(rows, root), len(rows)
        else:
            parsed, errors, total = group_rows(rows, root)
        place = f"{paths[0] if len(paths) == 1 else self.source}, {split}"
        images = image_files(parsed)
        memory = memory_file(self.cache_folder or self.folder, self.source, split)
        good, more = check_once(parsed, place, [*paths, *images], memory)
        self.errors[split] = [*errors, *more]
        raise_or_skip(
            self.errors[split], self.on_error, place, total - len(good), total, "pairs" if table.pairs else "rankings"
        )
        return self._joined(good, split, place) if table.joined else good

    def _joined(self, rankings: list[RankedPrompt], split: str, place: str) -> list[RankedPrompt]:
        """Join the answers on the same images, and log how many contradict each other."""
        joined, repeated, self.contradicting[split] = join_annotators(
            rankings, ImageKeys(data_folder() / "image_keys.npy")
        )
        if repeated:
            logger.warning(
                "%s: %d pairs of images have several answers, %d of them contradicting ones; the reward learns their "
                "shares",
                *(place, repeated, self.contradicting[split]),
            )
        return joined

    def _table(self, paths: tuple[Path, ...]) -> PreferenceFile:
        if paths not in self._read:
            others = [files for files in split_files(self.source).values() if files != paths]
            self._read[paths] = table = read_preferences(paths, self.columns, self.labels, others)
            if table.note:
                logger.warning("%s: %s", paths[0] if len(paths) == 1 else self.source, table.note)
        return self._read[paths]

    @staticmethod
    def _has_splits(rows: list[Row]) -> bool:
        return any("split" in row.cells for row in rows)

    def _part(self, table: PreferenceFile, paths: tuple[Path, ...], split: str) -> list[Row]:
        """The rows of a split in data for all splits."""
        rows = table.rows
        if self._has_splits(rows):
            if nowhere := [row.place for row in rows if not row.text("split")]:
                raise ValueError(f"{nowhere[0]}: the column split is empty; fill it in every row or in none")
            splits = [row.text("split") for row in rows]
        else:
            prompts = [spelled_alike(row.text("prompt")) for row in rows]
            splits_of = self._by_hash({*prompts})
            splits = [splits_of[prompt] for prompt in prompts]
            self._tell(paths[0] if len(paths) == 1 else self.source, splits_of, split)
        if table.pairs:
            return [row for row, where in zip(rows, splits, strict=True) if where == split]
        rankings = [(group_name(row), row.text("annotator")) for row in rows]
        wanted = {ranking for ranking, where in zip(rankings, splits, strict=True) if where == split}
        # A ranking in two splits is an error in both.
        return [row for row, ranking in zip(rows, rankings, strict=True) if ranking in wanted]

    def _tell(self, path: Path, splits: Mapping[str, str], wanted: str) -> None:
        """Log once how many prompts each split received."""
        counts = {split: sum(where == split for where in splits.values()) for split in self.shares}
        text = ", ".join(f"{count} prompts {split}" for split, count in counts.items())
        if not counts[wanted]:
            raise ValueError(
                f"{path} has no column split, and too few prompts for {wanted} ({text}). Rank more, add the column "
                "split, or use one file per split."
            )
        if not self._told:
            logger.warning("%s has no column split; its prompts are split by a hash: %s", path, text)
            self._told = True

    def _by_hash(self, prompts: set[str]) -> dict[str, str]:
        """The split of each prompt; `prompts` are spelled alike, so that no spelling is in another split.

        A split with less than its share, or less than three prompts if that is fewer, gets the nearest ones of the
        largest split.
        """
        places = {prompt: hash_fraction(prompt, self.seed) for prompt in prompts}
        ends = dict(zip(self.shares, accumulate(self.shares.values()), strict=True))
        last = list(ends)[-1]
        found = {prompt: next((s for s, end in ends.items() if place < end), last) for prompt, place in places.items()}
        for split, share in self.shares.items():
            middle, least = ends[split] - share / 2, min(3, max(share > 0, int(share * len(found))))
            while (counts := Counter(found.values()))[split] < least:
                largest = max((other for other in counts if other != split), key=counts.__getitem__, default=split)
                if counts[largest] < 2 or largest == split:
                    break
                near = (prompt for prompt in sorted(found) if found[prompt] == largest)
                found[min(near, key=lambda prompt: abs(places[prompt] - middle))] = split
        return found
