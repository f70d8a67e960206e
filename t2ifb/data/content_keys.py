"""What an image or a prompt is, whatever it is called: the SHA-256 of its content, and of how images are decoded."""

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
from t2ifb.data.files import atomic_write
from t2ifb.data.rankings import Image, read_bytes

KEY_BYTES = 32
ANNOUNCED = 2000
"""From so many images on, hashing shows its progress."""

logger = logging.getLogger(__name__)


def prompt_key(prompt: str) -> bytes:
    """The SHA-256 of a prompt's UTF-8."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()


class ImageKeys:
    """The SHA-256 of images' files, remembered in a file so that the next run need not read them.

    What is remembered belongs to path, time and size of a file, or to what a source calls its identity. A source
    without identity is read every time.
    """

    def __init__(self, path: Path) -> None:
        """Remember in `path`, a table of pairs of 32 bytes; it need not exist."""
        self.path = path
        self._known: dict[bytes, bytes] = {}

    def __call__(self, images: Sequence[Image]) -> list[bytes]:
        """Keys of 32 bytes, one per image.

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
        with suppress(OSError, ValueError):
            table = np.load(self.path, allow_pickle=False)
            if table.dtype == np.uint8 and table.ndim == 2 and table.shape[1] == 2 * KEY_BYTES:
                raw = table.tobytes()
                starts = range(0, len(raw), 2 * KEY_BYTES)
                return {raw[s : s + KEY_BYTES]: raw[s + KEY_BYTES : s + 2 * KEY_BYTES] for s in starts}
        return {}

    def _save(self) -> None:
        """Add what other jobs have found meanwhile, and write. In a read-only folder the next run reads again."""
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
