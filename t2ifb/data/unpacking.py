"""Unpack tar archives once, atomically and only inside their folder."""

import gzip
import json
import logging
import shutil
import tarfile
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich import progress

from t2ifb.data.archives import leaves_folder
from t2ifb.data.faults import Fault
from t2ifb.data.files import atomic_write, file_lock, free_bytes, make_folder, storage_errors

logger = logging.getLogger(__name__)

RECORD = ".unpacked.json"
"""File in the folder that records its archive and the rejected members."""


def unpack_once(archive: Path, folder: Path) -> list[Fault]:
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
                with atomic_write(place / RECORD) as file:
                    file.write(json.dumps({**_stamp(archive), "refused": [fault.what for fault in refused]}).encode())
                place.chmod(0o755)
                if folder.exists():
                    (folder / RECORD).unlink(missing_ok=True)
                    shutil.rmtree(folder)
                place.rename(folder)
            except BaseException:
                shutil.rmtree(place, ignore_errors=True)
                raise
    return refused


def _recorded(archive: Path, folder: Path) -> list[Fault] | None:
    """Recorded rejections if this archive was unpacked into the folder; None otherwise."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if {key: known[key] for key in ("size", "modified")} == _stamp(archive):
            return [Fault(str(archive), what) for what in known["refused"]]
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


def _extract(archive: Path, folder: Path) -> list[Fault]:
    """Write the archive's files into the empty folder. Links and devices are never created."""
    refused: list[Fault] = []
    try:
        with (
            progress.open(archive, "rb", description="unpacking", transient=True) as raw,
            gzip.open(raw) as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            for member in tar:
                if leaves_folder(member.name):
                    refused.append(Fault(str(archive), f"member {member.name!r} leaves the folder; it is not unpacked"))
                elif member.isfile():
                    target = folder / member.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    content = tar.extractfile(member)
                    assert content is not None
                    with target.open("wb") as file:
                        shutil.copyfileobj(content, file)
                elif not member.isdir():
                    refused.append(
                        Fault(str(archive), f"member {member.name!r} is a link or a device; it is not unpacked")
                    )
            while stream.read(2**20):  # gzip detects a truncated file, tarfile does not
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{archive} is not a complete tar.gz archive ({error}); download it again") from error
    return refused
