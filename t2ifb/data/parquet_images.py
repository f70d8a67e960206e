"""Images in parquet files, read by row group on opening."""

import io
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as PILImage

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
