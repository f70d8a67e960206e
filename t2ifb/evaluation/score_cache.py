"""Score cache on disk: each scorer scores each pair of image and prompt once."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    track,
)
from torch import Tensor, nn

from t2ifb.data.content_keys import ImageKeys, prompt_key
from t2ifb.data.embeddings import cut_prompts, report_cut
from t2ifb.data.images import load_image, pixel_batches
from t2ifb.data.rankings import Image
from t2ifb.data.storage.row_store import RowStore
from t2ifb.evaluation.lazy import Unbuilt, UnusableScorers, build
from t2ifb.utils.devices import device_of
from t2ifb.utils.files import file_lock, write_json
from t2ifb.utils.fingerprints import FileHashes, identity

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
        identity: Identity of the scorer.
    """

    def __init__(self, root: Path, identity: Any) -> None:
        """Open the store. Nothing is written."""
        self.identity = identity
        self.folder = root / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
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
        write_json(self.folder / "scorer.json", {**record, "scorer": self.identity})


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
        found = self.stores[name].identity
        return dict(found) if isinstance(found, dict) else {"fingerprint": found}


Scorer: TypeAlias = Callable[[Tensor, list[str]], Tensor]
COMMIT_SECONDS = 10.0
"""Interval between writes: an interruption loses at most this many seconds of scoring."""
UNUSABLE = (ValueError, OSError, ImportError, RuntimeError)
"""Exceptions of a scorer that cannot be built or rejects its input."""


class ScoreCache:
    """Cache in which each scorer scores each pair of image (by file content) and prompt once.

    Filling continues where an interrupted run stopped. Jobs that need the same scorer wait for each other. If no scores
    are missing, the scorer is not built and nothing is written.
    """

    def __init__(self, folder: str | Path, device: str = "auto", batch_size: int = 32) -> None:
        """Store the settings. Nothing is read yet.

        Args:
            folder: Folder of the cache.
            device: Device; `auto` is the GPU if one exists.
            batch_size: Images per scorer call.

        Raises:
            ValueError: `batch_size` is invalid, or the device does not exist.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.root, self.batch_size = Path(folder).expanduser(), batch_size
        self.device = device_of(device)
        self._image_keys = ImageKeys(self.root / "image_keys.npy")
        self._hashes = FileHashes(self.root / "file_keys.npy")

    def fill(self, scorers: Mapping[str, Unbuilt], images: Sequence[Image], prompts: Sequence[str]) -> Scores:
        """Compute missing scores, one scorer after the other.

        Args:
            scorers: Scorers by their names in messages.
            images: N images; images with equal content are scored once per prompt.
            prompts: N texts.

        Returns:
            All scores.

        Raises:
            UnusableScorers: Some scorers cannot be built or fail; all are named, and nothing was scored.
            ValueError: An image cannot be read, or a scorer gives NaN or infinity.
            StorageError: The disk is full or the folder is read-only; complete batches are kept.
        """
        image_keys = self._image_keys(images)
        pair_keys = [hashlib.sha256(i + prompt_key(p)).digest() for i, p in zip(image_keys, prompts, strict=True)]
        wanted: Wanted = {}
        for image_key, pair, image, prompt in zip(image_keys, pair_keys, images, prompts, strict=True):
            pairs = wanted.setdefault(image_key, (image, []))[1]
            if (pair, prompt) not in pairs:
                pairs.append((pair, prompt))
        stores, errors = self._stores(scorers)
        unscored = [name for name, store in stores.items() if store.missing(wanted)]
        if len(unscored) > 1 or errors:  # a single scorer fails at once anyway
            errors |= self._try_out({name: scorers[name] for name in unscored}, images[0], prompts[0])
        _refuse(errors, scorers)
        for name in unscored:
            with file_lock(stores[name].folder / "lock"):
                if left := stores[name].missing(wanted):
                    self._score(name, scorers[name], stores[name], left)
        return Scores(stores, pair_keys)

    def try_out(self, scorers: Mapping[str, Unbuilt], image: Image, prompt: str) -> None:
        """Test each scorer on one image, unless that score is cached. Nothing is stored.

        Raises:
            UnusableScorers: Some scorers cannot be built or fail; all are named.
        """
        (image_key,) = self._image_keys([image])
        wanted: Wanted = {image_key: (image, [(hashlib.sha256(image_key + prompt_key(prompt)).digest(), prompt)])}
        stores, errors = self._stores(scorers)
        unscored = {name: scorers[name] for name, store in stores.items() if store.missing(wanted)}
        _refuse(errors | self._try_out(unscored, image, prompt), scorers)

    def _stores(self, scorers: Mapping[str, Unbuilt]) -> tuple[dict[str, ScoreStore], dict[str, str]]:
        """Each scorer's store, and the errors of scorers whose files are missing."""
        stores, errors = {}, {}
        for name, part in scorers.items():
            try:
                stores[name] = ScoreStore(self.root, identity(part, self._hashes, "scorer"))
            except UNUSABLE as error:
                errors[name] = str(error) or type(error).__name__
        return stores, errors

    def _try_out(self, scorers: Mapping[str, Unbuilt], image: Image, prompt: str) -> dict[str, str]:
        """Build each scorer and score one image, so that missing files fail early."""
        errors: dict[str, str] = {}
        for name, part in track(scorers.items(), "testing the scorers", transient=True):
            try:
                self._built(name, part, image, prompt)
            except UnusableScorers as error:
                errors |= error.errors
        return errors

    def _built(self, name: str, part: Unbuilt, image: Image, prompt: str) -> Scorer:
        """Build the scorer on the device and score one image, so that lazy parts are loaded."""
        pixels = load_image(image)[None]
        try:
            scorer = build(part)
            scorer = scorer.to(self.device).eval() if isinstance(scorer, nn.Module) else scorer
            with torch.inference_mode():
                checked_scores(scorer(pixels.to(self.device), [prompt]), 1)
        except UNUSABLE as error:
            raise UnusableScorers({name: str(error) or type(error).__name__}) from error
        return scorer

    def _score(self, name: str, part: Unbuilt, store: ScoreStore, wanted: Wanted) -> None:
        """Score and store in groups of batches, and store the remaining ones on an error.

        Only whole batches are stored. If each image has one prompt, a resumed run uses the same batches.
        """
        first, pairs = next(iter(wanted.values()))
        scorer = self._built(name, part, first, pairs[0][1])
        prompts = [prompt for _, each in wanted.values() for _, prompt in each]
        report_cut(cut_prompts(scorer, prompts), prompts, name)
        keys: list[bytes] = []
        scores: list[Tensor] = []
        seconds, last = 0.0, time.monotonic()

        def commit() -> None:
            nonlocal keys, scores, seconds, last
            done, keys, made, scores, took, seconds = keys, [], scores, [], seconds, 0.0
            if done:
                store.add(done, torch.cat(made), took, self._device_name)
            last = time.monotonic()

        columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as bar, torch.inference_mode():
            task = bar.add_task(f"scoring with {name}", total=sum(len(pairs) for _, pairs in wanted.values()))
            try:
                for chosen, pixels in self._batches(wanted):
                    started = time.monotonic()
                    scores.append(self._scored(name, scorer, pixels, [prompt for _, prompt in chosen]))
                    seconds += time.monotonic() - started
                    keys += [key for key, _ in chosen]
                    if time.monotonic() - last >= COMMIT_SECONDS:
                        commit()
                    bar.update(task, advance=len(chosen))
            finally:
                commit()
        del scorer
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _batches(self, wanted: Wanted) -> Iterator[tuple[list[tuple[bytes, str]], Tensor]]:
        """Pairs and their pixels. An image with several prompts is decoded once."""
        items = list(wanted.values())
        for index, pixels in pixel_batches([image for image, _ in items], self.batch_size):
            pairs = [(row, pair) for row, number in enumerate(index) for pair in items[number][1]]
            for start in range(0, len(pairs), self.batch_size):
                part = pairs[start : start + self.batch_size]
                yield [pair for _, pair in part], pixels[[row for row, _ in part]]

    def _scored(self, name: str, scorer: Scorer, pixels: Tensor, prompts: list[str]) -> Tensor:
        """Score a batch; the result is on the CPU.

        Raises:
            UnusableScorers: The number of scores is wrong, or a score is NaN or infinite.
            ValueError: The device is out of memory.
        """
        try:
            return checked_scores(scorer(pixels.to(self.device).float() / 255, prompts), len(prompts))
        except ValueError as error:
            text = f"{error}; the first prompt of the batch is {prompts[0]!r}"
            raise UnusableScorers({name: text}) from error
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"{name}: {self._device_name} is out of memory with batch_size={self.batch_size}; use a smaller one"
            ) from error

    @property
    def _device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)


def _refuse(errors: Mapping[str, str], scorers: Mapping[str, Unbuilt]) -> None:
    if errors:
        raise UnusableScorers({name: errors[name] for name in scorers if name in errors})


def checked_scores(scores: Tensor, count: int) -> Tensor:
    """Check scores and move them to the CPU in float32.

    Raises:
        ValueError: The shape is wrong, or a score is not finite.
    """
    if scores.shape != (count,):
        raise ValueError(f"expected {count} scores, got shape {tuple(scores.shape)}")
    scores = scores.detach().float().cpu()
    if wrong := int((~scores.isfinite()).sum()):
        raise ValueError(f"{wrong} of {count} scores are NaN or infinite; check the scorer's weights")
    return scores
