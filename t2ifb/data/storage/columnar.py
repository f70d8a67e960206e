"""Parquet files and WebDataset tars, read through the `datasets` library into memory-mapped tables."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
from PIL import Image as PILImage

from t2ifb.data.storage.archives import leaves_folder
from t2ifb.utils.files import data_folder
from t2ifb.utils.fingerprints import stamp

BUILDERS = {".parquet": ("parquet", "Parquet file"), ".tar": ("webdataset", "WebDataset tar")}
"""Builder of the `datasets` library and name of a kind of file, by suffix."""
KEY = "__key__"
"""Column of a WebDataset with the common stem of a sample's files."""
JSON = "json"
"""Column of a WebDataset with further columns."""
TEXTS = (JSON, "txt", "text", "cls", "id")
"""Suffixes that are read, beside those of images."""


@dataclass(frozen=True)
class ColumnImage:
    """An encoded image in a cell of a table (an `ImageSource`).

    Attributes:
        key: Identifier of the table that changes with the file.
        row: Index of the row.
        column: Name of the column.
        place: File and row, for messages.
        folder: Root of images that the cell names instead of holding them.
        table: The column, by row.
        named: Whether some cells of the column name files instead of holding them.
    """

    key: str
    row: int
    column: str
    place: str = field(compare=False)
    folder: Path = field(compare=False, repr=False)
    table: Any = field(compare=False, repr=False)
    named: bool = field(default=False, compare=False, repr=False)

    @property
    def file(self) -> Path | None:
        """The file that the cell names; None if the cell holds the image, or names a file outside the folder."""
        cell = self.table[self.row][self.column] if self.named else None
        name = None if not isinstance(cell, dict) or cell.get("bytes") else cell.get("path")
        return self.folder / name if name and not leaves_folder(name) else None

    def read(self) -> bytes:
        """The encoded file.

        Raises:
            ValueError: The cell has no image, or names one outside the table's folder.
            OSError: The named file cannot be read.
        """
        cell = self.table[self.row][self.column]
        content, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if not content and name:
            if leaves_folder(name):
                raise ValueError(f"it names {name!r}, outside the table's folder")
            content = (self.folder / name).read_bytes()
        if not content:
            raise ValueError("the cell contains no image" if content is None else "it is empty (0 bytes)")
        return cast(bytes, content)

    def open(self) -> PILImage.Image:
        """Open the image."""
        return PILImage.open(io.BytesIO(self.read()))

    def identity(self) -> str:
        """Identifier that changes when the table or a named file does. The image is not read."""
        file = self.file
        of_file = f"!{stamp(file)}" if file is not None and file.is_file() else ""
        return f"{self.key}!{self.row}!{self.column}{of_file}"

    def __str__(self) -> str:
        return f"{self.place}, {self.column}"


def read_columns(path: Path) -> tuple[list[str], Iterator[tuple[str, dict[str, Any]]]]:
    """Read a file. Columns of images give a `ColumnImage` in each row; the images are not decoded.

    Args:
        path: `.parquet`, or `.tar` in WebDataset's layout: files of one stem form a row, with their suffixes as columns
            and the keys of a `.json` file as further columns.

    Returns:
        Lower-case column names; place and cells of each row.

    Raises:
        ValueError: The file is not what its suffix says.
    """
    import datasets

    builder, kind = BUILDERS[path.suffix.lower()]
    try:
        table = datasets.load_dataset(
            builder, data_files=[str(path.absolute())], split="train", cache_dir=str(data_folder() / "tables"),
            features=_types(path) if builder == "webdataset" else None,
        )  # fmt: skip
    except Exception as error:  # the library wraps errors of many kinds
        cause = error.__cause__ or error
        what = " ".join(str(cause).split()) or type(cause).__name__
        raise ValueError(f"{path} is not a {kind}: {what}") from error
    images = [name for name, feature in table.features.items() if _holds_images(feature)]
    for name in images:
        if isinstance(table.features[name], datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    views = {name: table.select_columns([name]) for name in images}
    named = {name: _names_files(table.data.column(name)) for name in images}
    others = table.select_columns([name for name in table.column_names if name not in images])
    key = f"{path.absolute()}!{path.stat().st_mtime_ns}!{path.stat().st_size}"

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for number in range(len(table)):
            place = f"{path}, row {number}"
            cells = dict(others[number]) if others.column_names else {}
            cells |= cells[JSON] if isinstance(cells.get(JSON), dict) else {}
            if KEY in cells:
                cells.setdefault("prompt_id", cells[KEY])
            for name, view in views.items():
                cells[name.strip().lower()] = ColumnImage(key, number, name, place, path.parent, view, named[name])
            yield place, cells

    extra = table[JSON] if builder == "webdataset" and JSON in table.column_names else ()
    names = [*table.column_names, *(name for each in extra if isinstance(each, dict) for name in each)]
    return list(dict.fromkeys(name.strip().lower() for name in names)), rows()


def _types(path: Path) -> Any:
    """Types of a tar's columns; the library would guess them from the first samples and change what does not fit."""
    import datasets
    from datasets.packaged_modules.webdataset.webdataset import WebDataset

    with tarfile.open(path) as tar:
        suffixes = dict.fromkeys(Path(name).name.partition(".")[2] for name in tar.getnames())
    kinds = {KEY: datasets.Value("string")}
    for suffix in filter(None, suffixes):
        ending = suffix.rpartition(".")[2].lower()
        if ending in WebDataset.IMAGE_EXTENSIONS:
            kinds[suffix] = datasets.Image(decode=False)
        elif ending in TEXTS:
            kinds[suffix] = datasets.Json() if ending == JSON else datasets.Value("string")
    return datasets.Features(kinds)


def _names_files(column: Any) -> bool:
    """Whether a cell of an Arrow column has no bytes. No image is read."""
    chunks = [chunk for chunk in column.chunks if pa.types.is_struct(chunk.type)]
    return any(chunk.field("bytes").null_count for chunk in chunks)


def _holds_images(feature: Any) -> bool:
    """Whether a column holds encoded images: of the library's type, bytes, or both bytes and path."""
    import datasets

    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in ("binary", "large_binary")
