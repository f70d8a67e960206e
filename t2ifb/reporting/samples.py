"""Validation samples of a run: a strip of images per validation, with the scores."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from t2ifb.reporting.files import Notes, number, read_rows

MOST = 8
"""Number of prompts in a strip."""
BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""Exceptions of Pillow for files that are not images or are truncated."""


@dataclass(frozen=True)
class Samples:
    """Images of one validation.

    Attributes:
        step: Step of the validation; 0 is the base model.
        strip: PNG with one image per prompt, side by side.
        prompts: T texts, in the order of the strip.
        scores: Scores of the shown image of each prompt.
        size: Width and height of one image in pixels.
    """

    step: int
    strip: Path
    prompts: tuple[str, ...]
    scores: tuple[dict[str, float], ...]
    size: tuple[int, int]


def read_samples(folder: Path, notes: Notes) -> list[Samples]:
    """All validations in a run's `samples/`, ordered by step. Broken ones are skipped and noted."""
    found = []
    for path in _tables(folder):
        strip = path.with_name(f"{path.stem}_strip.png")
        if not os.path.isfile(strip):
            if os.path.isfile(strip.with_name(f"{path.stem}.png")):
                notes.add(strip, "is missing; this step is not in the gallery")
            continue
        samples = _read(int(path.stem.removeprefix("step_")), path, strip, notes)
        if samples is not None:
            found.append(samples)
    return sorted(found, key=lambda samples: samples.step)


def _tables(folder: Path) -> Iterable[Path]:
    try:
        return sorted(path for path in folder.iterdir() if re.fullmatch(r"step_\d+\.csv", path.name))
    except OSError:
        return []


def _read(step: int, table: Path, strip: Path, notes: Notes) -> Samples | None:
    first: dict[str, dict[str, float]] = {}
    for row in read_rows(table, notes):
        prompt = row.pop("prompt", None)
        if prompt is not None and prompt not in first and len(first) < MOST:
            first[prompt] = {name: value for name, cell in row.items() if (value := number(cell)) is not None}
    if not first:
        notes.add(table, "has no prompts; this step is not in the gallery")
        return None
    try:
        with Image.open(strip) as image:
            image.verify()  # detects a truncated file before decoding
            width, height = image.size
    except BROKEN as error:
        notes.add(strip, f"cannot be read ({error}); this step is not in the gallery")
        return None
    if width % len(first):
        notes.add(
            strip, f"is {width} pixels wide, not a multiple of {len(first)} images; this step is not in the gallery"
        )
        return None
    return Samples(step, strip, tuple(first), tuple(first.values()), (width // len(first), height))
