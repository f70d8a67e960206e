"""Embeddings of images and prompts, computed once per encoder and precision and stored on disk."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from t2ifb.data.content_keys import ImageKeys, prompt_key
from t2ifb.data.errors import brief
from t2ifb.data.images import pixel_batches
from t2ifb.data.rankings import Image
from t2ifb.data.storage.row_store import RowStore
from t2ifb.utils.files import file_lock, write_json

logger = logging.getLogger(__name__)


@runtime_checkable
class Encoder(Protocol):
    """Image and text encoder with a shared embedding space, such as CLIP."""

    image_size: int
    embedding_dim: int

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [0, 1] to L2-normalised float32 (B, D), preprocessing included."""
        ...

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """Encode B texts to L2-normalised float32 (B, D)."""
        ...


@runtime_checkable
class PairEncoder(Protocol):
    """Encoder that reads an image and its prompt together, such as ImageReward's network."""

    image_size: int
    embedding_dim: int

    def encode_pairs(self, images: Tensor, prompts: list[str]) -> Tensor:
        """States (B, D) float32 of images (B, 3, H, W) in [0, 1] with B prompts, preprocessing included."""
        ...


def embed(encoder: Encoder | PairEncoder, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """A head's inputs: embeddings (B, D) of images and of prompts; of a `PairEncoder` states (B, D) and (B, 0)."""
    if isinstance(encoder, PairEncoder):
        states = encoder.encode_pairs(images, prompts)
        return states, states[:, :0]
    return encoder.encode_images(images), encoder.encode_prompts(prompts)


class EncoderSource(Protocol):
    """Description of an encoder that builds it on demand."""

    def fingerprint(self) -> str:
        """Identifier that differs between encoders with different embeddings. Does not build the encoder."""
        ...

    def load(self) -> Encoder:
        """Build the encoder."""
        ...


class PairSource(Protocol):
    """Description of a `PairEncoder`; as `EncoderSource`.

    Attributes:
        reads_together: Distinguishes it from an `EncoderSource`.
    """

    @property
    def reads_together(self) -> Literal[True]: ...

    def fingerprint(self) -> str: ...

    def load(self) -> PairEncoder: ...


def cut_prompts(reader: Any, prompts: Iterable[str]) -> list[str]:
    """The distinct prompts that an encoder or scorer truncates.

    Args:
        reader: Encoder or scorer. Its parts that truncate long prompts have a method `cut_prompts(prompts)`, which
            returns the prompts that exceed their context.
        prompts: Texts.
    """
    distinct = list(dict.fromkeys(prompts))
    parts: Iterable[Any] = reader.modules() if isinstance(reader, nn.Module) else [reader]
    found = {prompt for part in parts if hasattr(part, "cut_prompts") for prompt in part.cut_prompts(distinct)}
    return [prompt for prompt in distinct if prompt in found]


def report_cut(cut: Sequence[str], prompts: Iterable[str], name: str) -> None:
    """Log how many prompts exceed the context of `name`. No log entry if none does."""
    if cut:
        logger.warning(
            "%d of %d prompts are longer than the context of %s and are cut off, the first: %s",
            *(len(cut), len(set(prompts)), name, brief(cut[0])),
        )


__all__ = ["EmbeddingCache", "Embeddings", "Encoder", "EncoderSource", "FillReport", "Storage"]

Storage: TypeAlias = Literal["fp32", "fp16", "bf16"]
STORED_AS = {"fp32": "<f4", "fp16": "<f2", "bf16": "<u2"}
"""NumPy has no bfloat16; its bits are stored as unsigned integers."""
CUT = "cut.json"
COMMIT_SECONDS = 10.0
"""Interval between writes: an interruption loses at most this many seconds of encoding."""

Batch: TypeAlias = tuple[list[bytes], Tensor]
Prompted: TypeAlias = tuple[Image, str]
"""An image and its prompt; an empty prompt for an encoder that reads images alone."""


@dataclass(frozen=True)
class FillReport:
    """Result of filling a cache.

    Attributes:
        encoded: Number of distinct images and prompts that were encoded.
        reused: Number of distinct images and prompts found in the cache.
        seconds: Wall time.
        cut: Distinct prompts that exceed the encoder's context, in order.
    """

    encoded: int
    reused: int
    seconds: float
    cut: tuple[str, ...] = ()


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a list of images or prompts, read from disk when gathered.

    Attributes:
        table: (M, D), the whole cache, memory-mapped, in the stored precision.
        rows: (N,) int64, each item's row in `table`.
        storage: The precision of `table`.
    """

    table: NDArray[Any]
    rows: NDArray[np.int64]
    storage: Storage

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, index: NDArray[np.int64] | slice = slice(None)) -> Tensor:
        """Load embeddings.

        Args:
            index: (n,), indices of items; all by default.

        Returns:
            (n, D) float32.
        """
        stored = torch.from_numpy(self.table[self.rows[index]])
        return (stored.view(torch.bfloat16) if self.storage == "bf16" else stored).float()


@dataclass(frozen=True)
class NoEmbeddings:
    """The prompts of a `PairEncoder`, which have no embeddings of their own.

    Attributes:
        count: N.
    """

    count: int

    def __len__(self) -> int:
        return self.count

    def gather(self, index: NDArray[np.int64] | slice = slice(None)) -> Tensor:
        """(n, 0)."""
        return torch.empty(len(np.arange(self.count)[index]), 0)


class EmbeddingCache:
    """Cache that encodes each distinct image (by file content) and prompt once.

    With a `PairEncoder` it encodes each distinct image with its prompt.

    Every encoder and precision has its own subfolder. Filling continues where an interrupted run stopped. Jobs that
    fill the same cache wait for each other. If nothing is missing, the encoder is not built and nothing is written.
    """

    def __init__(
        self, folder: str | Path, source: EncoderSource | PairSource, storage: Storage = "fp32", batch_size: int = 64
    ) -> None:
        """Store the settings. Nothing is read or built until `fill`.

        Args:
            folder: Folder of all caches.
            source: Source of the encoder.
            storage: Precision on disk. Embeddings are always read as float32.
            batch_size: Images or prompts per encoder call.

        Raises:
            ValueError: `storage` or `batch_size` is invalid.
        """
        if storage not in STORED_AS:
            raise ValueError(f"storage must be {', '.join(STORED_AS)}, not {storage!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.source = source
        self.storage: Storage = storage
        self.batch_size = batch_size
        self.root = Path(folder).expanduser()
        self._image_keys = ImageKeys(self.root / "image_keys.npy")
        self._stores: dict[str, RowStore] = {}

    @property
    def embeddings_of(self) -> str:
        """Fingerprint of the encoder."""
        return self.source.fingerprint()

    @property
    def folder(self) -> Path:
        """Folder of this encoder and precision."""
        digest = hashlib.sha256(self.embeddings_of.encode()).hexdigest()[:16]
        return self.root / f"{digest}-{self.storage}"

    @property
    def reads_together(self) -> bool:
        """Whether the encoder is a `PairEncoder`."""
        return bool(getattr(self.source, "reads_together", False))

    def fill(self, images: Sequence[Image], prompts: Sequence[str]) -> FillReport:
        """Encode the items that are not in the cache.

        Args:
            images: Images; repetitions are encoded once.
            prompts: Texts; repetitions are encoded once. For a `PairEncoder` the prompt of each image.

        Returns:
            Counts and wall time.

        Raises:
            ValueError: An image cannot be read, or the encoder gives NaN or infinity.
            StorageError: The disk is full or the folder is read-only; complete embeddings are kept.
        """
        started = time.monotonic()
        texts = prompts if self.reads_together else [""] * len(images)
        distinct_images = dict(zip(self._keys(images, prompts), zip(images, texts, strict=True), strict=True))
        distinct_prompts = {prompt_key(prompt): prompt for prompt in prompts}
        alone = {} if self.reads_together else distinct_prompts
        total = len(distinct_images) + len(alone)
        encoded = 0
        if self._missing("images", distinct_images) or self._missing("prompts", alone):
            with file_lock(self.folder / "lock"):
                encoded = self._encode(self._missing("images", distinct_images), self._missing("prompts", alone))
        known = self._cut()
        cut = tuple(prompt for key, prompt in distinct_prompts.items() if key.hex() in known)
        return FillReport(encoded, total - encoded, time.monotonic() - started, cut)

    def images(self, images: Sequence[Image], prompts: Sequence[str] = ()) -> Embeddings:
        """Embeddings of N images, or of N images with their prompts, in their order.

        Raises:
            ValueError: Some are not in the cache.
        """
        return self._embeddings("images", self._keys(images, prompts))

    def prompts(self, prompts: Sequence[str]) -> Embeddings | NoEmbeddings:
        """Embeddings of N prompts, in their order.

        Raises:
            ValueError: Some are not in the cache.
        """
        if self.reads_together:
            return NoEmbeddings(len(prompts))
        return self._embeddings("prompts", [prompt_key(prompt) for prompt in prompts])

    def _keys(self, images: Sequence[Image], prompts: Sequence[str]) -> list[bytes]:
        """Keys of images, or of images with their prompts."""
        keys = self._image_keys(images)
        if not self.reads_together:
            return keys
        return [prompt_key(f"{key.hex()} {prompt}") for key, prompt in zip(keys, prompts, strict=True)]

    def _store(self, kind: str) -> RowStore:
        if kind not in self._stores:
            self._stores[kind] = RowStore(self.folder, kind, STORED_AS[self.storage])
        return self._stores[kind]

    def _missing(self, kind: str, items: dict[bytes, Any]) -> dict[bytes, Any]:
        """The items that are not on disk now."""
        store = self._store(kind)
        store.reload()
        return {key: item for key, item in items.items() if key not in store}

    def _embeddings(self, kind: str, keys: list[bytes]) -> Embeddings:
        store = self._store(kind)
        store.reload()
        if missing := sum(key not in store for key in keys):
            raise ValueError(f"{missing} of {len(keys)} {kind} are not in the cache {self.folder}; call fill() first")
        return Embeddings(store.table(), np.array([store.row(key) for key in keys], np.int64), self.storage)

    def _encode(self, images: dict[bytes, Prompted], prompts: dict[bytes, str]) -> int:
        """Encode the missing items and return their number."""
        if not images and not prompts:
            return 0
        write_json(self.folder / "encoder.json", {"fingerprint": self.source.fingerprint(), "storage": self.storage})
        encoder = self.source.load()
        read = [*prompts.values(), *(prompt for _, prompt in images.values())]
        if cut := cut_prompts(encoder, read):
            write_json(self.folder / CUT, sorted(self._cut() | {prompt_key(prompt).hex() for prompt in cut}))
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as bar, torch.inference_mode():
            for kind, items, batches in (
                ("images", images, self._image_batches(encoder, images)),
                ("prompts", prompts, self._prompt_batches(encoder, prompts)),
            ):
                if not items:
                    continue
                task = bar.add_task(f"encoding {kind}", total=len(items))
                self._keep(kind, batches, lambda done, task=task: bar.update(task, advance=done))  # type: ignore[misc]
        return len(images) + len(prompts)

    def _cut(self) -> set[str]:
        """Hexadecimal keys of the truncated prompts."""
        with suppress(OSError, ValueError):
            return set(json.loads((self.folder / CUT).read_text(encoding="utf-8")))
        return set()

    def _image_batches(self, encoder: Encoder | PairEncoder, images: dict[bytes, Prompted]) -> Iterator[Batch]:
        keys, device = list(images), _device(encoder)
        files, texts = [image for image, _ in images.values()], [prompt for _, prompt in images.values()]
        for index, decoded in pixel_batches(files, self.batch_size):
            pixels = decoded.to(device).float().div_(255)
            if isinstance(encoder, PairEncoder):
                rows = encoder.encode_pairs(pixels, [texts[i] for i in index])
            else:
                rows = encoder.encode_images(pixels)
            yield [keys[i] for i in index], rows

    def _prompt_batches(self, encoder: Encoder | PairEncoder, prompts: dict[bytes, str]) -> Iterator[Batch]:
        keys, texts = list(prompts), list(prompts.values())
        for start in range(0, len(keys), self.batch_size):
            chosen = slice(start, start + self.batch_size)
            assert isinstance(encoder, Encoder)  # a `PairEncoder` has no prompts alone
            yield keys[chosen], encoder.encode_prompts(texts[chosen])

    def _keep(self, kind: str, batches: Iterator[Batch], advance: Callable[[int], None]) -> None:
        """Write batches in groups, and the remaining ones on an error.

        Only whole batches are written. A resumed run then encodes in the same batches as an uninterrupted one, so the
        embeddings agree to the last bit.
        """
        store = self._store(kind)
        keys: list[bytes] = []
        rows: list[NDArray[Any]] = []
        last = time.monotonic()
        try:
            for batch_keys, embeddings in batches:
                rows.append(self._stored(embeddings, kind))
                keys += batch_keys
                if time.monotonic() - last >= COMMIT_SECONDS:
                    store.append(keys, np.concatenate(rows))
                    keys, rows, last = [], [], time.monotonic()
                advance(len(batch_keys))
        finally:
            if rows:
                store.append(keys, np.concatenate(rows))

    def _stored(self, embeddings: Tensor, kind: str) -> NDArray[Any]:
        if not torch.isfinite(embeddings).all():
            raise ValueError(f"the encoder gives NaN or infinity for {kind}; check its weights")
        embeddings = embeddings.detach().cpu()
        if self.storage == "bf16":
            return embeddings.to(torch.bfloat16).view(torch.uint16).numpy()
        return embeddings.numpy().astype(STORED_AS[self.storage])


def _device(encoder: Encoder | PairEncoder) -> torch.device:
    """Device of an encoder's weights."""
    if isinstance(encoder, nn.Module) and (weight := next(encoder.parameters(), None)) is not None:
        return weight.device
    return torch.device("cpu")
