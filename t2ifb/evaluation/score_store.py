"""Scores on disk, by scorer and by pair of image and prompt, and how fast they were made."""

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
"""What is to be scored: by image key the image and the pair key and text of each of its prompts."""


@dataclass(frozen=True)
class Speed:
    """How fast a scorer was when its scores were made: the network with its preprocessing, decoding left out.

    Attributes:
        images: How many it scored.
        seconds: In which time.
        device: On what.
    """

    images: int
    seconds: float
    device: str

    @property
    def per_second(self) -> float:
        """Images per second."""
        return self.images / self.seconds if self.seconds > 0 else float("nan")


class ScoreStore:
    """The scores of one scorer on disk, and how fast they were made.

    Attributes:
        folder: Where.
        identity: Of the scorer, as JSON.
    """

    def __init__(self, root: Path, identity: str) -> None:
        """Open what is there; nothing is written."""
        self.identity = identity
        self.folder = root / hashlib.sha256(identity.encode()).hexdigest()[:16]
        self.rows = RowStore(self.folder, "scores", "<f4")

    def missing(self, wanted: Wanted) -> Wanted:
        """The pairs that the disk does not hold at this moment."""
        self.rows.reload()
        left = {key: (image, [p for p in pairs if p[0] not in self.rows]) for key, (image, pairs) in wanted.items()}
        return {key: (image, pairs) for key, (image, pairs) in left.items() if pairs}

    def speed(self) -> Speed | None:
        """How fast the scores were made; None where that is not known."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads((self.folder / "scorer.json").read_text(encoding="utf-8"))
            return Speed(int(record["images"]), float(record["seconds"]), str(record["device"]))
        return None

    def add(self, keys: list[bytes], scores: Tensor, seconds: float, device: str) -> None:
        """Keep scores that were made in some seconds on a device.

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
    """Scores of N pairs by several scorers, read from disk when asked for.

    Attributes:
        stores: By scorer.
        keys: N keys of pairs.
    """

    stores: Mapping[str, ScoreStore]
    keys: Sequence[bytes]

    def of(self, name: str) -> NDArray[np.float32]:
        """(N,) scores of one scorer."""
        rows = self.stores[name].rows
        return rows.table()[[rows.row(key) for key in self.keys], 0].astype(np.float32)

    def speed(self, name: str) -> Speed | None:
        """How fast they were made."""
        return self.stores[name].speed()

    def identity(self, name: str) -> dict[str, Any]:
        """What made them."""
        return dict(json.loads(self.stores[name].identity))
