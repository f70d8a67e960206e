"""Append-only table of keyed rows on disk; indexed rows are always complete."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t2ifb.utils.files import atomic_write, make_folder, storage_errors
from t2ifb.utils.fingerprints import KEY_BYTES

HEADER_BYTES = 128

logger = logging.getLogger(__name__)


class RowStore:
    """Rows of equal width in `<name>.npy`, their keys in `<name>.index.npy`: key i belongs to row i.

    Rows are appended by plain writes, so that a full disk raises an error (with a memory map it would kill the
    process), and read through a memory map. The index is replaced atomically after the rows are on disk. Rows beyond
    the index are leftovers of an interrupted run: they are never read, and the next run overwrites them. Only one
    process may write at a time, which the caller ensures with a lock; any number may read.
    """

    def __init__(self, folder: Path, name: str, dtype: str) -> None:
        """Open the table. It need not exist.

        Args:
            folder: Folder of the files.
            name: Base name of the files.
            dtype: NumPy type of the stored numbers, such as `<f4`.
        """
        self.rows_path = folder / f"{name}.npy"
        self.index_path = folder / f"{name}.index.npy"
        self.dtype = np.dtype(dtype)
        self.width = 0
        self._rows: dict[bytes, int] = {}
        self._version: tuple[int, int, int] | None = None
        self.reload()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def row(self, key: bytes) -> int:
        """Row index of a key. Raises `KeyError` if the key is missing."""
        return self._rows[key]

    def reload(self) -> None:
        """Read rows that other processes have added."""
        version = self._index_version()
        if version is not None and version == self._version:
            return
        self._version, self._rows, self.width = version, {}, 0
        if version is None:
            return
        try:
            keys = np.load(self.index_path, allow_pickle=False)
            with self.rows_path.open("rb") as file:
                np.lib.format.read_magic(file)
                (_, width), _, dtype = np.lib.format.read_array_header_1_0(file)
            sound = keys.dtype == np.uint8 and keys.shape[1:] == (KEY_BYTES,) and dtype == self.dtype and width > 0
            if not sound:
                raise ValueError("unexpected type or shape")
        except (OSError, ValueError, EOFError) as error:
            logger.warning("%s is damaged (%s) and will be rebuilt.", self.rows_path, error)
            return
        whole = (self.rows_path.stat().st_size - HEADER_BYTES) // (width * self.dtype.itemsize)
        raw = keys[: max(whole, 0)].tobytes()
        self._rows = {raw[i * KEY_BYTES : (i + 1) * KEY_BYTES]: i for i in range(len(raw) // KEY_BYTES)}
        self.width = width

    def table(self) -> NDArray[Any]:
        """All rows (N, width), memory-mapped and read-only."""
        if not self._rows:
            return np.empty((0, self.width), self.dtype)
        mapped = np.memmap(self.rows_path, self.dtype, "r", HEADER_BYTES, (len(self._rows), self.width))
        return np.asarray(mapped)

    def append(self, keys: list[bytes], rows: NDArray[Any]) -> None:
        """Append rows. When this returns, the rows are on disk.

        Args:
            keys: 32 bytes each, not in the table yet.
            rows: (len(keys), width).

        Raises:
            StorageError: The disk is full or the folder read-only; the table is unchanged.
            ValueError: The width differs from the table's.
        """
        if self._rows and rows.shape[1] != self.width:
            raise ValueError(
                f"{self.rows_path} has rows of {self.width} numbers, but the encoder returns {rows.shape[1]}: delete "
                f"{self.rows_path.parent} to rebuild it"
            )
        self.width = rows.shape[1]
        total = len(self._rows) + len(keys)
        content = np.ascontiguousarray(rows, self.dtype)
        folder = make_folder(self.rows_path.parent)
        with storage_errors(folder):
            descriptor = os.open(self.rows_path, os.O_RDWR | os.O_CREAT, 0o666)
            with os.fdopen(descriptor, "r+b") as file:
                file.write(self._header(total))
                file.seek(HEADER_BYTES + len(self._rows) * self.width * self.dtype.itemsize)
                file.write(content.tobytes())
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        rows_of = self._rows | {key: len(self._rows) + i for i, key in enumerate(keys)}
        assert len(rows_of) == total
        with atomic_write(self.index_path) as index:
            np.save(index, np.frombuffer(b"".join(rows_of), np.uint8).reshape(-1, KEY_BYTES))
        self._rows, self._version = rows_of, self._index_version()

    def _header(self, rows: int) -> bytes:
        """Header of a `.npy` file with a fixed length, independent of the number of rows."""
        text = f"{{'descr': '{self.dtype.str}', 'fortran_order': False, 'shape': ({rows}, {self.width}), }}"
        magic = np.lib.format.magic(1, 0)
        space = HEADER_BYTES - len(magic) - 2
        return magic + space.to_bytes(2, "little") + text.ljust(space - 1).encode("latin1") + b"\n"

    def _index_version(self) -> tuple[int, int, int] | None:
        """Inode, time and size of the index, which change when it is replaced."""
        try:
            status = self.index_path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size
