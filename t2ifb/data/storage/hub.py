"""Files of a data set: in a folder, or on the Hugging Face Hub with a local cache."""

import fnmatch
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, TypeGuard

from t2ifb.utils.files import data_folder, free_bytes

logger = logging.getLogger(__name__)


class Files(Protocol):
    """Files of a data set by relative path.

    Attributes:
        home: Default folder for the results of checks.
    """

    home: Path

    def find(self, name: str) -> Path | None:
        """Local path of a file; None if it is not on this machine."""
        ...

    def here(self, pattern: str) -> list[str]:
        """Names on this machine that match a pattern such as `data/train-*.parquet`, sorted."""
        ...

    def offered(self, pattern: str) -> list[str]:
        """All matching names, including those on the hub, sorted."""
        ...

    def fetch(self, names: Iterable[str]) -> None:
        """Download files to this machine."""
        ...


def is_hub_id(source: str | Path) -> TypeGuard[str]:
    """Whether a source has the form of a hub id with its owner, such as `zai-org/ImageRewardDB`; a `Path` never has."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if not isinstance(source, str) or source.count("/") != 1:
        return False
    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return True


def files_of(source: str | Path, cache_folder: Path | None) -> Files:
    """Read `source` as a folder if it exists or looks like a path, else as a hub id such as `zai-org/ImageRewardDB`."""
    if is_hub_id(source) and not Path(source).exists():
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
        """Path of the file; None if it is missing."""
        path = self.folder / name
        return path if path.exists() else None

    def here(self, pattern: str) -> list[str]:
        """Matching names in the folder."""
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.glob(pattern))

    def offered(self, pattern: str) -> list[str]:
        """Matching names in the folder."""
        return self.here(pattern)

    def fetch(self, names: Iterable[str]) -> None:
        """Check that the files exist.

        Raises:
            ValueError: Files are missing; the message names them.
        """
        if missing := [name for name in names if self.find(name) is None]:
            raise ValueError(f"{self.folder} lacks {', '.join(missing)}")


class HubFiles:
    """A data set on the hub, downloaded file by file into the hub's cache."""

    def __init__(self, repository: str, cache_folder: Path | None) -> None:
        """Store the settings. The network is not used yet.

        Args:
            repository: Hub id, such as `zai-org/ImageRewardDB`.
            cache_folder: Folder for downloads; the hub library's cache by default.
        """
        self.repository = repository
        self.cache_folder = cache_folder
        self.home = cache_folder or data_folder()

    def __str__(self) -> str:
        return f"hub data set {self.repository}"

    def find(self, name: str) -> Path | None:
        """Path in the cache; None if the file was not downloaded. The network is not used."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.repository, name, cache_dir=self.cache_folder, repo_type="dataset")
        return Path(found) if isinstance(found, str) else None

    def here(self, pattern: str) -> list[str]:
        """Matching names in the cache. The network is not used."""
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
        """Matching names on the hub. The pattern's folder must be a plain name.

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
                f"Could not list {self.repository} on the hub: {error}. Check the network and try again, or "
                "give a local folder with the same files."
            ) from error
        names = [entry.path for entry in entries if isinstance(entry, RepoFile)]
        return sorted(fnmatch.filter(names, pattern))

    def fetch(self, names: Iterable[str]) -> None:
        """Log the total size and download the missing files. Interrupted downloads are resumed.

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
                "network and try again (complete files are kept), or give a local folder with the same files."
            ) from error

    def _sizes(self, names: list[str]) -> dict[str, int]:
        """Sizes in bytes, from the hub."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        found = HfApi().get_paths_info(self.repository, names, repo_type="dataset")
        sizes = {entry.path: entry.size for entry in found if isinstance(entry, RepoFile)}
        if lacking := [name for name in names if name not in sizes]:
            raise ValueError(f"{self.repository} has no file {', '.join(lacking)}; check its layout")
        return sizes

    def _announce(self, sizes: dict[str, int]) -> None:
        from huggingface_hub import constants

        folder = Path(self.cache_folder or os.fspath(constants.HF_HUB_CACHE))
        needed, free = sum(sizes.values()), free_bytes(folder)
        text = (
            f"{len(sizes)} files, {needed / 1e9:.2f} GB, of {self.repository} into {folder} ({free / 1e9:.0f} GB free)"
        )
        if needed > free:
            raise ValueError(f"No space to download {text}. Free some, download less, or choose another cache_folder.")
        logger.warning("Downloading %s", text)


def hub_errors() -> tuple[type[Exception], ...]:
    """Exceptions of the hub library: no network, missing files, broken connections.

    The last one belongs to the hub library's HTTP client, which differs between versions. It is the base class of the
    library's own HTTP error.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)))
