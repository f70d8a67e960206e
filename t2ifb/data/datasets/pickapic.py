"""Pick-a-Pic (arXiv 2305.01569): users' choices between two images, in parquet shards with the images."""

import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from t2ifb.data.errors import BadRecord, OnError, raise_or_skip
from t2ifb.data.rankings import RankedPrompt
from t2ifb.data.storage.archives import ParquetImage
from t2ifb.data.storage.hub import FolderFiles, files_of
from t2ifb.data.validation import check_once, memory_file

logger = logging.getLogger(__name__)

IMAGES = ("jpg_0", "jpg_1")
"""Image columns, read only when an image is opened."""
COLUMNS = ("caption", "label_0", "label_1", "image_0_uid", "image_1_uid", "has_label")
RANKS = {(1.0, 0.0): (1, 2), (0.0, 1.0): (2, 1), (0.5, 0.5): (1, 1)}
"""Labels of the two images to their ranks."""


class PickAPic:
    """A data set in the layout of Pick-a-Pic v2, in a folder or on the hub.

    Each labelled row is a ranking of two images; its id is the shard and the row number. Rows without a label are
    skipped and counted. The whole set has hundreds of gigabytes; `max_shards` limits the download.

    Attributes:
        errors: Errors per split; filled by `rankings`.
        unlabelled: Number of rows without label per split; filled by `rankings`.
    """

    def __init__(
        self,
        source: str | Path,
        max_shards: int | None = None,
        cache_folder: str | Path | None = None,
        on_error: OnError = "error",
    ) -> None:
        """Store the settings. Nothing is read or downloaded yet.

        Args:
            source: A folder with `data/<split>-*.parquet`, or a hub id such as `yuvalkirstain/pickapic_v2`.
            max_shards: Number of shards per split, counted from the first; all by default.
            cache_folder: Folder for downloads and the results of image checks.
            on_error: `error` stops on bad data, `skip` drops the affected rankings.

        Raises:
            ValueError: `max_shards` is less than 1.
        """
        if max_shards is not None and max_shards < 1:
            raise ValueError(f"max_shards must be at least 1, or null for all, not {max_shards}")
        self.source = source
        self.max_shards = max_shards
        self.on_error = on_error
        self.errors: dict[str, list[BadRecord]] = {}
        self.unlabelled: dict[str, int] = {}
        self.cache_folder = Path(cache_folder).expanduser() if cache_folder is not None else None
        self._files = files_of(source, self.cache_folder)

    @staticmethod
    def recognises(source: str) -> bool:
        """Whether a folder or hub id is in Pick-a-Pic's layout."""
        folder = Path(source).expanduser()
        return any(folder.glob("data/*-*.parquet")) if folder.is_dir() else source.endswith("/pickapic_v2")

    @property
    def missing_message(self) -> str:
        """Message for a missing split."""
        wanted = "all" if self.max_shards is None else f"the first {self.max_shards}"
        if isinstance(self._files, FolderFiles):
            return f"{self.source} lacks shards ({wanted} expected): data/<split>-*.parquet. Give another folder."
        return (
            f"Shards of {self._files} ({wanted} expected) are not on this machine. Download them with "
            f"`python -m t2ifb.prepare domain=sd15 dataset=pickapic dataset.source={self.source} "
            "dataset.max_shards=<number of shards>`."
        )

    def available(self, split: str) -> bool:
        """Whether the requested shards of the split are on this machine. The network is not used."""
        shards = self._files.here(_pattern(split))
        totals = [total for shard in shards if (total := _total(shard)) is not None]
        if not totals:
            return bool(shards)
        wanted = range(min(totals[0], self.max_shards or totals[0]))
        return set(wanted) <= {_number(shard) for shard in shards}

    def download(self, splits: Iterable[str]) -> None:
        """Download the requested shards that are missing on this machine. A local folder is only checked.

        Raises:
            ValueError: The hub cannot be reached, the disk has too little space, or a split has no shards.
        """
        names: list[str] = []
        for split in splits:
            if not (offered := self._files.offered(_pattern(split))):
                raise ValueError(f"{self._files} has no {_pattern(split)}; is {split} one of its splits?")
            names += offered[: self.max_shards]
        self._files.fetch(names)

    def rankings(self, split: str) -> list[RankedPrompt]:
        """The split's rankings in the order of the rows. Images are decoded once, to find bad ones.

        Raises:
            ValueError: The split is missing, or has errors and `on_error` is `error`.
        """
        if not self.available(split):
            raise ValueError(f"The split {split!r} is missing. {self.missing_message}")
        names = self._files.here(_pattern(split))[: self.max_shards]
        shards = [path for name in names if (path := self._files.find(name)) is not None]
        rankings: list[RankedPrompt] = []
        errors: list[BadRecord] = []
        rows = labelled = 0
        for shard in shards:
            for where, prompt_id, images, row in _rows(shard):
                rows += 1
                if not row["has_label"]:
                    continue
                labelled += 1
                if (what := _row_error(row)) is not None:
                    errors.append(BadRecord(where, what))
                    continue
                ranks = RANKS[row["label_0"], row["label_1"]]
                rankings.append(RankedPrompt(prompt_id, row["caption"] or "", images, ranks))
        self.unlabelled[split] = rows - labelled
        if rows > labelled:
            logger.warning(
                "%s, %s: %d of %d rows have no label and are skipped", self._files, split, rows - labelled, rows
            )
        place = f"{self._files}, {split}"
        memory = memory_file(self.cache_folder or self._files.home, self.source, split, f"{len(shards)}-shards")
        good, more = check_once(rankings, place, shards, memory)
        self.errors[split] = [*errors, *more]
        raise_or_skip(self.errors[split], self.on_error, place, labelled - len(good), labelled)
        return good


def _rows(shard: Path) -> Iterator[tuple[str, str, tuple[ParquetImage, ParquetImage], dict[str, Any]]]:
    """Place, id, images and small columns of each row. The image columns are not read.

    Raises:
        ValueError: The file is not parquet, or lacks columns.
    """
    try:
        with pq.ParquetFile(shard) as file:
            if lacking := [name for name in (*COLUMNS, *IMAGES) if name not in file.schema_arrow.names]:
                raise ValueError(f"{shard} has no column {', '.join(lacking)}; it has {file.schema_arrow.names}")
            groups = [file.read_row_group(number, columns=list(COLUMNS)) for number in range(file.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{shard} is not a complete parquet file ({error}); download it again") from error
    number = 0
    for group, table in enumerate(groups):
        for position, row in enumerate(table.to_pylist()):
            images = (ParquetImage(shard, group, position, "jpg_0"), ParquetImage(shard, group, position, "jpg_1"))
            yield f"{shard}, row {number}", f"{shard.stem}/{number}", images, row
            number += 1


def _row_error(row: dict[str, Any]) -> str | None:
    """BadRecord of a labelled row, images excluded; None if it has none."""
    labels = (row["label_0"], row["label_1"])
    if labels not in RANKS:
        return f"labels must be 1 and 0, 0 and 1, or 0.5 twice, found {labels[0]} and {labels[1]}"
    if row["image_0_uid"] == row["image_1_uid"]:
        return f"the same image twice ({row['image_0_uid']})"
    return None


def _pattern(split: str) -> str:
    return f"data/{split}-*.parquet"


def _numbers(shard: str) -> re.Match[str] | None:
    """Number and total in a name such as `data/train-00003-of-00645-<hash>.parquet`."""
    return re.match(r".*-(\d+)-of-(\d+)\b", PurePosixPath(shard).name)


def _number(shard: str) -> int | None:
    return int(found[1]) if (found := _numbers(shard)) else None


def _total(shard: str) -> int | None:
    return int(found[2]) if (found := _numbers(shard)) else None
