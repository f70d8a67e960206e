"""Where a data set's files are: a folder, or the hub and its cache on this machine."""

import fnmatch
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from t2ifb.data.files import free_bytes

logger = logging.getLogger(__name__)


class Files(Protocol):
    """Files of a data set by their relative path.

    Attributes:
        home: A folder for what is found out about the files, if no other is given.
    """

    home: Path

    def find(self, name: str) -> Path | None:
        """The file on this machine, None if it is not here."""
        ...

    def here(self, pattern: str) -> list[str]:
        """Names on this machine that match a pattern such as `data/train-*.parquet`, sorted."""
        ...

    def offered(self, pattern: str) -> list[str]:
        """Names that there are at all, on the hub too, sorted."""
        ...

    def fetch(self, names: Iterable[str]) -> None:
        """Bring files to this machine."""
        ...


def files_of(source: str | Path, cache_folder: Path | None) -> Files:
    """Read `source` as a folder if it exists or looks like a path, else as a hub id such as `zai-org/ImageRewardDB`."""
    is_hub_id = isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) is not None
    if is_hub_id and not Path(source).exists():
        return HubFiles(str(source), cache_folder)
    return FolderFiles(Path(source).expanduser())


class FolderFiles:
    """A folder in the data set's layout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder

    def __str__(self) -> str:
        return str(self.folder)

    def find(self, name: str) -> Path | None:
        """The file, None if it is missing."""
        path = self.folder / name
        return path if path.exists() else None

    def here(self, pattern: str) -> list[str]:
        """Names in the folder that match."""
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.glob(pattern))

    def offered(self, pattern: str) -> list[str]:
        """The same: there is nowhere else to look."""
        return self.here(pattern)

    def fetch(self, names: Iterable[str]) -> None:
        """Check that the files are there.

        Raises:
            ValueError: Some are missing; the message names them.
        """
        if missing := [name for name in names if self.find(name) is None]:
            raise ValueError(f"{self.folder} lacks {', '.join(missing)}")


class HubFiles:
    """A data set on the hub, downloaded file by file into the hub's cache."""

    def __init__(self, repository: str, cache_folder: Path | None) -> None:
        """Name the data set; nothing is looked up yet.

        Args:
            repository: Such as `zai-org/ImageRewardDB`.
            cache_folder: Where downloads go; the hub library's own cache by default.
        """
        self.repository = repository
        self.cache_folder = cache_folder
        self.home = cache_folder or Path("~/.cache/t2ifb").expanduser()

    def __str__(self) -> str:
        return f"hub data set {self.repository}"

    def find(self, name: str) -> Path | None:
        """The file in the cache, None if it was not downloaded; the network is not used."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repository, name, cache_dir=self.cache_folder, repo_type="dataset")
        return Path(found) if isinstance(found, str) else None

    def here(self, pattern: str) -> list[str]:
        """Names in the cache that match; the network is not used."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = snapshot_download(
                self.repository, repo_type="dataset", cache_dir=self.cache_folder, local_files_only=True
            )
        except LocalEntryNotFoundError:
            return []
        return FolderFiles(Path(folder)).here(pattern)

    def offered(self, pattern: str) -> list[str]:
        """Names on the hub that match; the pattern's folder has to be a plain name.

        Raises:
            ValueError: The hub cannot be reached.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        folder = pattern.rpartition("/")[0] or None
        try:
            entries = list(HfApi().list_repo_tree(self.repository, folder, repo_type="dataset"))
        except hub_errors() as error:
            raise ValueError(
                f"Could not ask the hub what {self.repository} holds: {error}. Check the network and try again, or "
                "give a local folder with the same files."
            ) from error
        names = [entry.path for entry in entries if isinstance(entry, RepoFile)]
        return sorted(fnmatch.filter(names, pattern))

    def fetch(self, names: Iterable[str]) -> None:
        """Download the files that are not here yet, after telling how large they are; interrupted downloads go on.

        Raises:
            ValueError: The hub cannot be reached or lacks a file, or the disk has too little space.
        """
        from huggingface_hub import hf_hub_download

        missing = [name for name in names if self.find(name) is None]
        if not missing:
            return
        try:
            self._announce(self._sizes(missing))
            for name in missing:
                hf_hub_download(self.repository, name, repo_type="dataset", cache_dir=self.cache_folder)
        except hub_errors() as error:
            raise ValueError(
                f"Could not download {len(missing)} files of {self.repository} from the hub: {error}. Check the "
                "network and try again (what has arrived is kept), or give a local folder with the same files."
            ) from error

    def _sizes(self, names: list[str]) -> dict[str, int]:
        """Sizes in bytes, as the hub tells them."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        found = HfApi().get_paths_info(self.repository, names, repo_type="dataset")
        sizes = {entry.path: entry.size for entry in found if isinstance(entry, RepoFile)}
        if lacking := [name for name in names if name not in sizes]:
            raise ValueError(f"{self.repository} has no file {', '.join(lacking)}; is it laid out as expected?")
        return sizes

    def _announce(self, sizes: dict[str, int]) -> None:
        from huggingface_hub import constants

        folder = Path(self.cache_folder or os.fspath(constants.HF_HUB_CACHE))
        needed, free = sum(sizes.values()), free_bytes(folder)
        text = (
            f"{len(sizes)} files, {needed / 1e9:.2f} GB, of {self.repository} into {folder} ({free / 1e9:.0f} GB free)"
        )
        if needed > free:
            raise ValueError(f"No space to download {text}. Free some, ask for less, or choose another cache_folder.")
        logger.warning("Downloading %s", text)


def hub_errors() -> tuple[type[Exception], ...]:
    """What the hub library raises without network, for missing files and when a connection breaks off.

    The last is an error of the library that it talks to the network with, which is another one in other versions; the
    base of its own error class tells which.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)))
