"""Scores on disk, by scorer and by pair of image and prompt, with the scoring speed."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from t2ifb.data.files import atomic_write
from t2ifb.data.rankings import Image
from t2ifb.data.row_store import RowStore

Wanted: TypeAlias = dict[bytes, tuple[Image, list[tuple[bytes, str]]]]
"""Pairs to score: by image key, the image and its prompts as (pair key, text)."""


@dataclass(frozen=True)
class Speed:
    """Speed of a scorer: network and preprocessing, without decoding.

    Attributes:
        images: Number of scored images.
        seconds: Scoring time.
        device: Name of the device.
    """

    images: int
    seconds: float
    device: str

    @property
    def per_second(self) -> float:
        """Images per second."""
        return self.images / self.seconds if self.seconds > 0 else float("nan")


class ScoreStore:
    """Scores of one scorer on disk, with the scoring speed.

    Attributes:
        folder: Folder of the store.
        identity: Identity of the scorer, as JSON.
    """

    def __init__(self, root: Path, identity: str) -> None:
        """Open the store. Nothing is written."""
        self.identity = identity
        self.folder = root / hashlib.sha256(identity.encode()).hexdigest()[:16]
        self.rows = RowStore(self.folder, "scores", "<f4")

    def missing(self, wanted: Wanted) -> Wanted:
        """The pairs that are not on disk now."""
        self.rows.reload()
        left = {key: (image, [p for p in pairs if p[0] not in self.rows]) for key, (image, pairs) in wanted.items()}
        return {key: (image, pairs) for key, (image, pairs) in left.items() if pairs}

    def speed(self) -> Speed | None:
        """Scoring speed; None if unknown."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads((self.folder / "scorer.json").read_text(encoding="utf-8"))
            return Speed(int(record["images"]), float(record["seconds"]), str(record["device"]))
        return None

    def add(self, keys: list[bytes], scores: Tensor, seconds: float, device: str) -> None:
        """Store scores with their computation time and device.

        Raises:
            StorageError: The disk is full or the folder is read-only.
        """
        self.rows.append(keys, scores.numpy()[:, None])
        before = self.speed()
        if before is None or before.device != device:
            before = Speed(0, 0.0, device)
        record = {"images": before.images + len(keys), "seconds": before.seconds + seconds, "device": device}
        with atomic_write(self.folder / "scorer.json") as file:
            file.write(json.dumps({**record, "scorer": json.loads(self.identity)}, indent=1).encode())


@dataclass(frozen=True)
class Scores:
    """Scores of N pairs by several scorers, read from disk on access.

    Attributes:
        stores: Stores by scorer.
        keys: Keys of the N pairs.
    """

    stores: Mapping[str, ScoreStore]
    keys: Sequence[bytes]

    def of(self, name: str) -> NDArray[np.float32]:
        """Scores (N,) of one scorer."""
        rows = self.stores[name].rows
        return rows.table()[[rows.row(key) for key in self.keys], 0].astype(np.float32)

    def speed(self, name: str) -> Speed | None:
        """Scoring speed of a scorer."""
        return self.stores[name].speed()

    def identity(self, name: str) -> dict[str, Any]:
        """Identity of a scorer."""
        return dict(json.loads(self.stores[name].identity))
