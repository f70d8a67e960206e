"""Atomic writes, locks between jobs, and file hashes."""

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

import t2ifb

logger = logging.getLogger(__name__)

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
MISPLACED = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}


class StorageError(OSError, ValueError):
    """A folder is not writable: the disk is full, the folder is read-only, or the path is not a folder.

    Also a `ValueError`, because the user can correct it. The message names the folder and the remedy.
    """


class FolderInUse(ValueError):
    """Another process uses the run's folder."""


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turn the operating system's write errors in `folder` into one clear message.

    Raises:
        StorageError: The disk is full, the folder is read-only, or a file is in the place of a folder.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        message = _explanation(error, folder)
        if message is None:
            raise
        raise StorageError(message) from error


def _explanation(error: OSError, folder: Path) -> str | None:
    elsewhere = "or choose another folder (T2IFB_DATA sets the one for data and caches)"
    if error.errno in FULL:
        return f"No space left in {folder} ({error.strerror}). Free some, {elsewhere}. Complete results are kept."
    if error.errno in FORBIDDEN:
        return f"{folder} is not writable ({error.strerror}). Give this user permission to write, {elsewhere}."
    if error.errno in MISPLACED:
        return f"{folder} cannot be used as a folder ({error.strerror}). Move the file in its place, {elsewhere}."
    return None


def make_folder(folder: Path) -> Path:
    """Create a folder with its parents, if it does not exist.

    Raises:
        StorageError: The folder cannot be created.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Write a file completely or not at all, even if the process is killed.

    The bytes go to a temporary file in the same folder, are flushed to disk, and the file is renamed. After a failure
    the temporary file is removed and the previous content of `path` is unchanged. Missing folders are created.

    Args:
        path: The file to write.

    Yields:
        A binary file to write to.

    Raises:
        StorageError: The disk is full or the folder is not writable.
    """
    path = Path(path)
    folder = make_folder(path.parent)
    with storage_errors(folder):
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=folder)
        try:
            # With mode "wb", numpy bypasses Python's file object and misses a full disk.
            with os.fdopen(descriptor, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
        _sync_folder(folder)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file like `atomic_write`."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file like `atomic_write`. Values of other types are written as text."""
    write_text(path, json.dumps(content, indent=2, default=str))


@lru_cache(maxsize=1)
def _umask() -> int:
    """The process's umask, which can only be read by setting it. `mkstemp` ignores it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make a rename durable across a power cut, where the system supports it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def file_lock(path: str | Path) -> Iterator[None]:
    """Hold the lock file `path`. While another process holds it, log a warning and wait.

    The operating system releases the lock when its holder ends, even by a kill.

    Raises:
        StorageError: The lock file cannot be created.
    """
    path = Path(path)
    make_folder(path.parent)
    lock = FileLock(path)
    with storage_errors(path.parent):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("Another job is using %s; waiting for it.", path.parent)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file as 64 hexadecimal digits; cached per process by time and size."""
    path = Path(path).resolve()
    status = path.stat()
    return _sha256(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4096)
def _sha256(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_path(path: str | Path) -> str | None:
    """Path of a file or folder relative to this package, such as `shapes/weights/clip`; None for others."""
    package, path = Path(t2ifb.__file__).resolve().parent, Path(path).expanduser().resolve()
    return path.relative_to(package).as_posix() if path.is_relative_to(package) else None


def public_name(source: str | Path) -> str:
    """Name of a model in a model card, without paths of this machine.

    A hub id is its own name. A part of this package is named by its path in the package, any other file or folder by
    its last path component and the SHA-256 of its weights.
    """
    path = Path(source).expanduser()
    if not path.exists():
        return str(source)
    if inside := package_path(path):
        return f"t2ifb/{inside}"
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    digest = (
        hashlib.sha256("".join(map(sha256_file, files)).encode()).hexdigest() if path.is_dir() else sha256_file(path)
    )
    return f"{path.resolve().name} (SHA-256 {digest[:16]})"


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of `folder`, which need not exist."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def read_text(path: Path) -> str:
    """Read a user's text file: UTF-8, with or without a byte order mark.

    Raises:
        ValueError: The file has another encoding; the message names the first offending line.
    """
    content = path.read_bytes()
    remedy = "save the file as UTF-8 (in Excel: CSV UTF-8)" if path.suffix.lower() == ".csv" else "save it as UTF-8"
    start = content[:1000]
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") or start.count(0) * 3 > len(start):
        raise ValueError(f"{path}, line 1: the text is in UTF-16; {remedy}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: the text is not in UTF-8 (byte 0x{content[error.start]:02x}); {remedy}"
        ) from error


def read_json_list(path: Path) -> list[Any]:
    """Read a JSON file that holds a list.

    Raises:
        ValueError: The file is missing, not JSON, or not a list.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; expected a JSON file")
    text = read_text(path)
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = "; a file with one object per line must end with .jsonl" if "Extra data" in str(error) else ""
        raise ValueError(f"{path} is not valid JSON: {error}{lines}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} must contain a JSON list, found {type(entries).__name__}")
    return entries


def data_folder() -> Path:
    """The folder for data sets and caches: `$T2IFB_DATA`, else `~/.cache/t2ifb`. It need not exist."""
    return Path(os.environ.get("T2IFB_DATA") or "~/.cache/t2ifb").expanduser().absolute()
