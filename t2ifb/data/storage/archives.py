"""Images inside zip archives and parquet files, read in place; tar archives, unpacked once inside their folder."""

import gzip
import io
import json
import logging
import os
import shutil
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as PILImage
from rich import progress

from t2ifb.data.errors import BadRecord
from t2ifb.utils.files import file_lock, free_bytes, make_folder, storage_errors, write_json

OPEN_ARCHIVES = 40
"""Archives kept open per process. ImageRewardDB has 36."""


def leaves_folder(name: str) -> bool:
    """Whether a member's name points outside the folder that its archive is extracted to."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or (len(name) > 1 and name[1] == ":")


class _Pool:
    """Archives kept open, by path, time and size; a `ZipFile` is safe across threads, not across a fork."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[int, Path, int, int], zipfile.ZipFile] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path) -> zipfile.ZipFile:
        status = path.stat()
        key = (os.getpid(), path, status.st_mtime_ns, status.st_size)
        with self._lock:
            if key not in self._open:
                try:
                    self._open[key] = zipfile.ZipFile(path)
                except zipfile.BadZipFile as error:
                    raise ValueError(
                        f"{path} is not a whole zip archive ({error}); delete it and download it again"
                    ) from error
                while len(self._open) > OPEN_ARCHIVES:
                    self._open.popitem(last=False)
            self._open.move_to_end(key)
            return self._open[key]


_pool = _Pool()


def archive_members(path: Path) -> dict[str, int]:
    """Names and sizes in bytes of an archive's files.

    Raises:
        ValueError: The file is not a complete zip archive.
    """
    return {info.filename: info.file_size for info in _pool.get(path).infolist() if not info.is_dir()}


@dataclass(frozen=True)
class ArchiveImage:
    """An image file in a zip archive (an `ImageSource`).

    Attributes:
        archive: The zip file.
        member: Name of the file in the archive.
    """

    archive: Path
    member: str

    def read(self) -> bytes:
        """The encoded file.

        Raises:
            ValueError: The name points outside the archive's folder, or the archive is broken.
            KeyError: The archive has no such member.
        """
        if leaves_folder(self.member):
            raise ValueError(f"{self}: the member's name points outside the archive's folder")
        try:
            return _pool.get(self.archive).read(self.member)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{self} is damaged ({error}); delete the archive and download it again") from error

    def open(self) -> PILImage.Image:
        """Open the image."""
        return PILImage.open(io.BytesIO(self.read()))

    def identity(self) -> str:
        """Path and checksum of the member: changes when the content does. The image is not read."""
        info = _pool.get(self.archive).getinfo(self.member)
        return f"{self.archive.absolute()}!{self.member}!{info.file_size}!{info.CRC:08x}"

    def __str__(self) -> str:
        return f"{self.archive}!{self.member}"


logger = logging.getLogger(__name__)

RECORD = ".unpacked.json"
"""File in the folder that records its archive and the rejected members."""


def unpack_once(archive: Path, folder: Path) -> list[BadRecord]:
    """Unpack an archive into its own folder, unless this was done before and the archive is unchanged.

    Files go to a temporary folder beside it, which is renamed when complete. Other jobs wait.

    Args:
        archive: A `.tar.gz`.
        folder: Target folder. Files of another archive in it are replaced.

    Returns:
        Rejected members: those with paths outside the folder, and those that are neither files nor folders.

    Raises:
        ValueError: The archive is damaged, or the disk has too little space.
        StorageError: The folder is not writable.
    """
    if (refused := _recorded(archive, folder)) is not None:
        return refused
    make_folder(folder.parent)
    with file_lock(folder.parent / f".{folder.name}.lock"):
        if (refused := _recorded(archive, folder)) is not None:  # done by the job that this one waited for
            return refused
        _check_space(archive, folder)
        with storage_errors(folder.parent):
            for left_over in folder.parent.glob(f".{folder.name}.*.tmp"):  # left by a killed job
                shutil.rmtree(left_over, ignore_errors=True)
            place = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
            try:
                refused = _extract(archive, place)
                write_json(place / RECORD, {**_stamp(archive), "refused": [error.what for error in refused]})
                place.chmod(0o755)
                if folder.exists():
                    (folder / RECORD).unlink(missing_ok=True)
                    shutil.rmtree(folder)
                place.rename(folder)
            except BaseException:
                shutil.rmtree(place, ignore_errors=True)
                raise
    return refused


def _recorded(archive: Path, folder: Path) -> list[BadRecord] | None:
    """Recorded rejections if this archive was unpacked into the folder; None otherwise."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if {key: known[key] for key in ("size", "modified")} == _stamp(archive):
            return [BadRecord(str(archive), what) for what in known["refused"]]
    return None


def _stamp(archive: Path) -> dict[str, Any]:
    status = archive.stat()
    return {"size": status.st_size, "modified": status.st_mtime_ns}


def _check_space(archive: Path, folder: Path) -> None:
    """Check the free space. Compressed images need about as much space as their archive."""
    needed, free = archive.stat().st_size, free_bytes(folder)
    text = f"{archive} ({needed / 1e9:.2f} GB) into {folder} ({free / 1e9:.0f} GB free)"
    if needed > free:
        raise ValueError(f"No space to unpack {text}. Free some, or choose another cache_folder.")
    logger.warning("Unpacking %s", text)


def _extract(archive: Path, folder: Path) -> list[BadRecord]:
    """Write the archive's files into the empty folder. Links and devices are never created."""
    refused: list[BadRecord] = []
    try:
        with (
            progress.open(archive, "rb", description="unpacking", transient=True) as raw,
            gzip.open(raw) as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            for member in tar:
                if leaves_folder(member.name):
                    refused.append(
                        BadRecord(str(archive), f"member {member.name!r} leaves the folder; it is not unpacked")
                    )
                elif member.isfile():
                    target = folder / member.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    content = tar.extractfile(member)
                    assert content is not None
                    with target.open("wb") as file:
                        shutil.copyfileobj(content, file)
                elif not member.isdir():
                    refused.append(
                        BadRecord(str(archive), f"member {member.name!r} is a link or a device; it is not unpacked")
                    )
            while stream.read(2**20):  # gzip detects a truncated file, tarfile does not
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{archive} is not a complete tar.gz archive ({error}); download it again") from error
    return refused


KEPT_BYTES = 2**29
"""Approximate bytes of encoded images in memory. Rankings are read in row order, alternating columns."""


class _RowGroups:
    """Cache of the last columns of row groups, the smallest readable parts of a parquet file."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, Path, int, int, int, str], pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path, group: int, column: str) -> pa.ChunkedArray:
        status = path.stat()
        key = (os.getpid(), path, status.st_mtime_ns, status.st_size, group, column)
        with self._lock:
            if key not in self._kept:
                with pq.ParquetFile(path) as file:
                    self._kept[key] = file.read_row_group(group, columns=[column])[column]
                while len(self._kept) > 2 and sum(each.nbytes for each in self._kept.values()) > KEPT_BYTES:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]


_row_groups = _RowGroups()


@dataclass(frozen=True, slots=True)
class ParquetImage:
    """An encoded image in a cell of a parquet file (an `ImageSource`).

    Attributes:
        file: The parquet file.
        group: Index of the row group.
        row: Index of the row in the row group.
        column: Name of a column of bytes.
    """

    file: Path
    group: int
    row: int
    column: str

    def read(self) -> bytes:
        """The encoded file.

        Raises:
            ValueError: The cell is empty, or the parquet file is damaged.
        """
        try:
            content = _row_groups.get(self.file, self.group, self.column)[self.row].as_py()
        except pa.ArrowException as error:
            raise ValueError(f"{self} is damaged ({error}); delete the file and download it again") from error
        if not content:
            raise ValueError("the cell contains no image" if content is None else "it is empty (0 bytes)")
        return cast(bytes, content)

    def open(self) -> PILImage.Image:
        """Open the image."""
        return PILImage.open(io.BytesIO(self.read()))

    def identity(self) -> str:
        """Identifier that changes when the file does. The image is not read."""
        status = self.file.stat()
        place = f"{self.group}!{self.row}!{self.column}"
        return f"{self.file.absolute()}!{place}!{status.st_mtime_ns}!{status.st_size}"

    def __str__(self) -> str:
        return f"{self.file}!row group {self.group}, row {self.row}, {self.column}"
