"""Strips of images as WebP data URIs, within a byte budget: many runs get fewer steps and smaller images."""

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from t2ifb.data.rankings import open_image
from t2ifb.reporting.curves import spread
from t2ifb.reporting.samples import BROKEN, Samples

PREFIX = "data:image/webp;base64,"
TRIED = 8
"""Number of strips used to estimate the total size."""


@dataclass(frozen=True)
class Level:
    """Quality level of thumbnails.

    Attributes:
        side: Maximum longer side of an image in pixels. Images are never enlarged.
        quality: WebP quality.
        steps: Maximum validations per run.
    """

    side: int
    quality: int
    steps: int


LEVELS = tuple(
    Level(*level)
    for level in (
        *((320, 85, 60), (256, 85, 40), (192, 80, 30), (128, 80, 20), (128, 75, 12), (96, 75, 12)),
        *((64, 70, 12), (64, 60, 8), (64, 50, 5), (48, 50, 4), (32, 40, 3), (32, 30, 2)),
    )
)
"""Levels from best to worst."""


@dataclass
class Gallery:
    """Thumbnails of all runs.

    Attributes:
        level: Level of the thumbnails; None without thumbnails.
        images: Unique data URIs. Runs with the same base model share its images.
        steps: Shown steps by run: the samples and the strip's index in `images`.
        broken: Read errors by run.
        dropped: Number of validations that did not fit even at the lowest level.
    """

    level: Level | None = None
    images: list[str] = field(default_factory=list)
    steps: dict[int, list[tuple[Samples, int]]] = field(default_factory=dict)
    broken: dict[int, list[str]] = field(default_factory=dict)
    dropped: int = 0

    @property
    def size(self) -> int:
        """Bytes of all data URIs."""
        return sum(map(len, self.images))


def make_gallery(runs: Mapping[int, Sequence[Samples]], kept: Mapping[int, float | None], budget: int) -> Gallery:
    """Make thumbnails of the best quality that the budget allows.

    Args:
        runs: Validations by run number, ordered by step.
        kept: Kept step by run number; it is always shown.
        budget: Bytes for all data URIs.
    """
    for level in LEVELS:
        chosen = {run: _some(samples, kept.get(run), level.steps) for run, samples in runs.items()}
        if _estimate(chosen, level) > budget and level is not LEVELS[-1]:
            continue
        gallery = _make(chosen, level, budget)
        if not gallery.dropped or level is LEVELS[-1]:
            return gallery
    raise AssertionError("the last level always returns")


def data_uri(samples: Samples, level: Level) -> str:
    """Encode one strip. Images are resized separately so that they do not bleed into their neighbours.

    Raises:
        ValueError: The strip cannot be decoded.
    """
    width, height = samples.size
    factor = min(1.0, level.side / max(width, height))
    small = (max(1, round(width * factor)), max(1, round(height * factor)))
    strip = open_image(samples.strip)
    if small != samples.size:
        tiles = [strip.crop((n * width, 0, (n + 1) * width, height)) for n in range(len(samples.prompts))]
        strip = Image.new("RGB", (small[0] * len(tiles), small[1]))
        for n, tile in enumerate(tiles):
            strip.paste(tile.resize(small, Image.Resampling.LANCZOS), (n * small[0], 0))
    buffer = io.BytesIO()
    strip.save(buffer, format="WEBP", quality=level.quality, method=3)
    return PREFIX + base64.b64encode(buffer.getvalue()).decode()


def _some(samples: Sequence[Samples], kept: float | None, most: int) -> list[Samples]:
    """Evenly spread steps, including the first, the last and the kept one."""
    at = next((n for n, item in enumerate(samples) if item.step == kept), None)
    return [samples[n] for n in spread(len(samples), most, at)]


def _estimate(chosen: Mapping[int, Sequence[Samples]], level: Level) -> float:
    every = [samples for some in chosen.values() for samples in some]
    sizes = []
    for n in spread(len(every), TRIED):
        try:
            sizes.append(len(data_uri(every[n], level)))
        except BROKEN:
            continue
    return sum(sizes) / len(sizes) * len(every) if sizes else 0.0


def _make(chosen: Mapping[int, Sequence[Samples]], level: Level, budget: int) -> Gallery:
    """Make all thumbnails at one level. The rest is counted as dropped once the budget is spent."""
    gallery = Gallery(level if any(chosen.values()) else None)
    known: dict[tuple[bytes, int], int] = {}
    spent = 0
    for run, some in chosen.items():
        shown = gallery.steps.setdefault(run, [])
        for samples in some:
            try:
                key = (hashlib.sha256(samples.strip.read_bytes()).digest(), len(samples.prompts))
                uri = data_uri(samples, level) if key not in known else ""
            except BROKEN as error:
                gallery.broken.setdefault(run, []).append(f"samples/{samples.strip.name}: cannot be decoded ({error})")
                continue
            if spent + len(uri) > budget:
                gallery.dropped += 1
                continue
            if uri:
                spent += len(uri)
                known[key] = len(gallery.images)
                gallery.images.append(uri)
            shown.append((samples, known[key]))
    return gallery
