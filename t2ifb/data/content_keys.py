"""Content keys of images and prompts: SHA-256 of the content and, for images, of the decoding version."""

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

from rich.progress import track

from t2ifb.data.decoding import DECODING
from t2ifb.data.rankings import Image, read_bytes
from t2ifb.utils.fingerprints import HashTable, stamp

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
        """Store the keys in the file `path`, which need not exist."""
        self.table = HashTable(path)

    def __call__(self, images: Sequence[Image]) -> list[bytes]:
        """One key of 32 bytes per image.

        Raises:
            ValueError: An image cannot be read; the message names it.
        """
        identities = [_identity(image) for image in images]
        unknown = [i for i, identity in enumerate(identities) if identity is None or identity not in self.table]
        found: dict[int, bytes] = {}
        with ThreadPoolExecutor() as pool:
            keys = pool.map(lambda i: _hash(images[i]), unknown)
            shown = track(keys, "reading images", total=len(unknown)) if len(unknown) >= ANNOUNCED else keys
            found = dict(zip(unknown, shown, strict=True))
        new = {identity: key for i, key in found.items() if (identity := identities[i]) is not None}
        if new:
            self.table.add(new)
        return [found[i] if i in found else self.table[cast(bytes, one)] for i, one in enumerate(identities)]


def _identity(image: Image) -> bytes | None:
    if isinstance(image, Path):
        try:
            text = repr(stamp(image))
        except OSError as error:
            raise ValueError(f"cannot read the image {image}: {error.strerror}") from error
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
