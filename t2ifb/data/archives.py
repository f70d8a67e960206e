"""Images inside zip archives, read without extracting them."""

import io
import os
import threading
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image as PILImage

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
