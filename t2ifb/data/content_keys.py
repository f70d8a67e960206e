"""Content keys of images and prompts: SHA-256 of the content and, for images, of the decoding version."""

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import cast

import numpy as np
from rich.progress import track

from t2ifb.data.decoding import DECODING
from t2ifb.data.rankings import Image, read_bytes
from t2ifb.utils.files import atomic_write

KEY_BYTES = 32
ANNOUNCED = 2000
"""Hashing at least this many images shows a progress bar."""

logger = logging.getLogger(__name__)


def prompt_key(prompt: str) -> bytes:
    """SHA-256 of a prompt's UTF-8 bytes."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()


class ImageKeys:
    """SHA-256 of image files, stored on disk so that the next run need not read the images.

    Entries are keyed by the file's path, time and size, or by the source's `identity()`. A source without identity is
    read every time.
    """

    def __init__(self, path: Path) -> None:
        """Store the keys in `path`, a table of pairs of 32 bytes. The file need not exist."""
        self.path = path
        self._known: dict[bytes, bytes] = {}

    def __call__(self, images: Sequence[Image]) -> list[bytes]:
        """One key of 32 bytes per image.

        Raises:
            ValueError: An image cannot be read; the message names it.
        """
        if not self._known:
            self._known = self._load()
        identities = [_identity(image) for image in images]
        unknown = [i for i, identity in enumerate(identities) if identity is None or identity not in self._known]
        found: dict[int, bytes] = {}
        with ThreadPoolExecutor() as pool:
            keys = pool.map(lambda i: _hash(images[i]), unknown)
            shown = track(keys, "reading images", total=len(unknown)) if len(unknown) >= ANNOUNCED else keys
            found = dict(zip(unknown, shown, strict=True))
        new = {identity: key for i, key in found.items() if (identity := identities[i]) is not None}
        if new:
            self._known |= new
            self._save()
        return [found[i] if i in found else self._known[cast(bytes, one)] for i, one in enumerate(identities)]

    def _load(self) -> dict[bytes, bytes]:
        with suppress(OSError, ValueError, EOFError):
            table = np.load(self.path, allow_pickle=False)
            if table.dtype == np.uint8 and table.ndim == 2 and table.shape[1] == 2 * KEY_BYTES:
                raw = table.tobytes()
                starts = range(0, len(raw), 2 * KEY_BYTES)
                return {raw[s : s + KEY_BYTES]: raw[s + KEY_BYTES : s + 2 * KEY_BYTES] for s in starts}
        return {}

    def _save(self) -> None:
        """Merge with the keys of other jobs and write. In a read-only folder the next run hashes again."""
        self._known = self._load() | self._known
        raw = b"".join(identity + key for identity, key in self._known.items())
        with suppress(OSError), atomic_write(self.path) as file:
            np.save(file, np.frombuffer(raw, np.uint8).reshape(-1, 2 * KEY_BYTES))


def _identity(image: Image) -> bytes | None:
    if isinstance(image, Path):
        try:
            status = image.stat()
        except OSError as error:
            raise ValueError(f"cannot read the image {image}: {error.strerror}") from error
        text = f"{image.absolute()}|{status.st_mtime_ns}|{status.st_size}"
    elif (identity := getattr(image, "identity", None)) is not None:
        text = identity()
    else:
        return None
    return hashlib.sha256(f"{DECODING}|{text}".encode("utf-8", "surrogatepass")).digest()


def _hash(image: Image) -> bytes:
    try:
        return hashlib.sha256(f"{DECODING}|".encode() + read_bytes(image)).digest()
    except OSError as error:
        raise ValueError(f"cannot read the image {image}: {error}") from error
