"""ImageRewardDB (arXiv 2304.05977), read from its own files: metadata in parquet, images in zip archives."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from t2ifb.data.datasets.imagereward_writer import Record, write_imagereward_db
from t2ifb.data.errors import BadRecord, OnError, raise_or_skip
from t2ifb.data.rankings import Image, RankedPrompt
from t2ifb.data.storage.archives import ArchiveImage, archive_members, leaves_folder
from t2ifb.data.storage.hub import FolderFiles, files_of
from t2ifb.data.validation import check_once, image_files, memory_file

__all__ = ["ImageRewardDB", "Record", "write_imagereward_db"]

SUBSETS = {"1k": 4, "2k": 8, "4k": 16, "8k": 32}
"""Number of training archives in each subset, counted from the first."""
COLUMNS = ("image_path", "prompt_id", "prompt", "rank")


class ImageRewardDB:
    """A data set in ImageRewardDB's layout, in a folder or on the hub.

    Rankings are keyed on `prompt_id`: the same prompt under two ids gives two rankings. Images are read from the zip
    archives without extracting them. If an archive was extracted, its folder is read instead.
    """

    def __init__(
        self,
        source: str | Path,
        subset: str = "8k",
        cache_folder: str | Path | None = None,
        on_error: OnError = "error",
        test_splits: Sequence[str] = ("test",),
        published: Mapping[str, float] | None = None,
        ceiling: Any = None,
        ceiling_parts: Sequence[str] = (),
    ) -> None:
        """Store the settings. Nothing is read or downloaded yet.

        Args:
            source: A folder, or a hub id such as `zai-org/ImageRewardDB`.
            subset: `1k`, `2k`, `4k` or `8k`: the part of the training split to read.
            cache_folder: Folder for downloads and the results of image checks.
            on_error: `error` stops on bad data, `skip` drops the affected rankings.
            test_splits: Splits that a reward model is tested on, the main one first.
            published: Published preference accuracies on the first of them in per cent, by name.
            ceiling: A scorer that knows the truth, so that no scorer can agree better with the annotators.
            ceiling_parts: Which of `ceiling.parts(images, prompts)` scorers are compared with too.

        Raises:
            ValueError: The subset does not exist.
        """
        if subset not in SUBSETS:
            raise ValueError(f"ImageRewardDB has no subset {subset!r}; its subsets are {', '.join(SUBSETS)}")
        self.source = source
        self.subset = subset
        self.on_error = on_error
        self.test_splits, self.published = tuple(test_splits), dict(published or {})
        self.ceiling, self.ceiling_parts = ceiling, tuple(ceiling_parts)
        self.errors: dict[str, list[BadRecord]] = {}
        self.cache_folder = Path(cache_folder).expanduser() if cache_folder is not None else None
        self._files = files_of(source, self.cache_folder)

    @staticmethod
    def recognises(source: str) -> bool:
        """Whether a folder or hub id is in ImageRewardDB's layout."""
        folder = Path(source).expanduser()
        return any(folder.glob("metadata-*.parquet")) if folder.is_dir() else source.endswith("/ImageRewardDB")

    @property
    def missing_message(self) -> str:
        """Message for a missing split."""
        if isinstance(self._files, FolderFiles):
            return (
                f"{self.source} is not a complete data set: expected metadata-<split>.parquet and "
                "images/<split>/<split>_<i>.zip. Build it with `python -m t2ifb.prepare`, or give another folder."
            )
        return f"{self._files} is not on this machine. Download it with `python -m t2ifb.prepare domain=sd15`."

    def available(self, split: str) -> bool:
        """Whether the split's metadata and all its archives are on this machine; the network is not used."""
        if self._files.find(_metadata_name(split)) is None:
            return False
        return all(self._holder(name) is not None for name in self._archive_names(self._metadata(split)))

    def download(self, splits: Iterable[str]) -> None:
        """Download the missing files of the splits. A local folder is only checked.

        Raises:
            ValueError: The hub cannot be reached, the disk has too little space, or a folder lacks files.
        """
        splits = list(splits)
        self._files.fetch(_metadata_name(split) for split in splits)
        needed = {name for split in splits for name in self._archive_names(self._metadata(split))}
        self._files.fetch(sorted(f"{name}.zip" for name in needed if self._holder(name) is None))

    def rankings(self, split: str) -> list[RankedPrompt]:
        """The split's rankings, in the order of the metadata. Images are decoded once, to find bad ones.

        Raises:
            ValueError: The split is missing, or has errors and `on_error` is `error`.
        """
        if not self.available(split):
            raise ValueError(f"The split {split!r} is missing. {self.missing_message}")
        place = f"{self._files}, {split}"
        metadata = self._metadata(split)
        rankings, errors = self._group(metadata, place)
        archives = sorted(path for name in self._archive_names(metadata) if (path := self._holder(name)) is not None)
        stray = [error for path in archives if path.suffix == ".zip" for error in _stray_members(path)]
        flawed = {error.place for error in errors}
        candidates = [r for r in rankings if f"{place}, ranking {r.prompt_id}" not in flawed]
        memory = memory_file(self.cache_folder or self._files.home, self.source, split, self.subset)
        good, more = check_once(candidates, place, [*archives, *image_files(candidates)], memory)
        self.errors[split] = [*stray, *errors, *more]
        raise_or_skip(self.errors[split], self.on_error, place, len(rankings) - len(good), len(rankings))
        return good

    def _metadata(self, split: str) -> dict[str, list[Any]]:
        """The columns in `COLUMNS`; for the training split, only the rows of the subset."""
        path = self._files.find(_metadata_name(split))
        assert path is not None
        try:
            table = pq.read_table(path, columns=list(COLUMNS), partitioning=None)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path} is not a parquet file with the columns {', '.join(COLUMNS)}: {error}") from error
        if lacking := set(COLUMNS) - set(table.column_names):
            raise ValueError(f"{path} has no column {', '.join(sorted(lacking))}")
        columns: dict[str, list[Any]] = table.to_pydict()
        if split != "train":
            return columns
        keep = [row for row, name in enumerate(columns["image_path"]) if _number(name) <= SUBSETS[self.subset]]
        return {key: [values[row] for row in keep] for key, values in columns.items()}

    def _archive_names(self, metadata: dict[str, list[Any]]) -> list[str]:
        """Archives without suffix, such as `images/train/train_1`, in order of appearance."""
        names = (str(PurePosixPath(name).parent) for name in metadata["image_path"] if not leaves_folder(name))
        return list(dict.fromkeys(names))

    def _holder(self, name: str) -> Path | None:
        """Path of the archive, or of the folder it was extracted to."""
        return self._files.find(f"{name}.zip") or self._files.find(name)

    def _group(self, metadata: dict[str, list[Any]], place: str) -> tuple[list[RankedPrompt], list[BadRecord]]:
        """Group rows into rankings by id. Also returns errors in the metadata and the archives' directories."""
        rows: dict[str, list[tuple[str, str, int]]] = {}
        for name, prompt_id, prompt, rank in zip(*(metadata[key] for key in COLUMNS), strict=True):
            rows.setdefault(str(prompt_id), []).append((name, prompt or "", int(rank or 0)))
        holders: dict[str, tuple[Path, dict[str, int]]] = {}
        rankings, errors = [], []
        for prompt_id, entries in rows.items():
            where = f"{place}, ranking {prompt_id}"
            names = [name for name, _, _ in entries]
            if len(set(names)) < len(names):
                errors.append(BadRecord(where, "the same image twice"))
            if len({prompt for _, prompt, _ in entries}) > 1:
                errors.append(BadRecord(where, "different prompts under one id"))
            images: list[Image] = []
            for name in names:
                image, what = self._locate(name, holders)
                images.append(image)
                if what is not None:
                    errors.append(BadRecord(where, f"image {name} {what}"))
            ranks = tuple(rank for _, _, rank in entries)
            rankings.append(RankedPrompt(prompt_id, entries[0][1], tuple(images), ranks))
        return rankings, errors

    def _locate(self, name: str, holders: dict[str, tuple[Path, dict[str, int]]]) -> tuple[Image, str | None]:
        """The image of an `image_path`, and its error as far as the archive's directory shows it.

        Args:
            name: Such as `images/train/train_1/<uuid>.webp`.
            holders: Archives read so far with the sizes of their members, by name; updated in place.
        """
        if leaves_folder(name):
            return Path(name), "points outside the data set's folder"
        path = PurePosixPath(name)
        parent = str(path.parent)
        if parent not in holders:
            found = self._holder(parent)
            assert found is not None
            holders[parent] = (found, archive_members(found) if found.is_file() else {})
        holder, sizes = holders[parent]
        if holder.is_dir():
            return holder / path.name, None
        size = sizes.get(path.name)
        what = "is missing from its archive" if size is None else "is empty (0 bytes)" if size == 0 else None
        return ArchiveImage(holder, path.name), what


def _metadata_name(split: str) -> str:
    return f"metadata-{split}.parquet"


def _number(image_path: str) -> int:
    """The number i of `images/train/train_<i>/<name>`; 0 if there is none."""
    number = PurePosixPath(image_path).parent.name.rpartition("_")[2]
    return int(number) if number.isdecimal() else 0


def _stray_members(archive: Path) -> Iterator[BadRecord]:
    """Members with paths outside the archive's folder. They are never read, but are reported."""
    for name in archive_members(archive):
        if leaves_folder(name):
            yield BadRecord(str(archive), f"member {name!r} leaves the folder; it is not read")
