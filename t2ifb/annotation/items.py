"""What annotators are asked about: prompts with their images, from a folder."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from t2ifb.data.drawn import INDEX
from t2ifb.data.rankings import Image, image_error
from t2ifb.data.tables import READERS, locate, read_table
from t2ifb.utils.files import read_json_list, read_text, sha256_file
from t2ifb.utils.random_streams import Stream, generator

logger = logging.getLogger(__name__)

Mode: TypeAlias = Literal["rank", "compare"]
CAPTION = "prompt.txt"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MOST = 9
"""Images that a page shows at once."""


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        key: Identifier, equal whenever the same images of the same prompt are asked about.
        prompt: The text.
        images: 2 to 9 files, in an order that says nothing about their models.
        models: Model of each image, such as `base` or `tuned`; empty texts if unknown.
        hashes: SHA-256 of each image, by which answers are matched when files have moved.
    """

    key: str
    prompt: str
    images: tuple[Path, ...]
    models: tuple[str, ...]
    hashes: tuple[str, ...] = ()


def read_items(source: str | Path, mode: Mode = "rank", images: int = MOST, seed: int = 0) -> list[Item]:
    """Questions about the images of a folder, shuffled.

    Args:
        source: Output of `python -m t2ifb.generate`; a folder with a folder per prompt, each with `prompt.txt` and
            images; or a table with the columns `prompt`, `image` and perhaps `model`.
        mode: `rank` asks about all images of a prompt, `compare` about each pair of images of different models; without
            models, about pairs of neighbours. Images that are in no question are counted in a warning.
        images: Maximum number of images per question, from 2 to 9. More images of a prompt are divided, with models in
            turn.
        seed: Seed of all orders.

    Raises:
        ValueError: The folder has no such prompts and images, or an image is outside of it or cannot be decoded.
    """
    if not 2 <= images <= MOST:
        raise ValueError(f"images={images}: expected a number from 2 to {MOST}")
    path = Path(source).expanduser()
    found: list[Item] = []
    alone = total = 0
    for number, (prompt, pictures) in enumerate(_prompts(path)):
        groups = _pairs(pictures) if mode == "compare" else _groups(pictures, images)
        asked: set[Picture] = set()
        for group in groups:
            asked.update(group)
            order = generator(Stream.ANNOTATION, seed, number, len(found)).permutation(len(group))
            files, models = zip(*(group[place] for place in order), strict=True)
            found.append(Item("", prompt, files, models))
        alone, total = alone + len(set(pictures) - asked), total + len(set(pictures))
    if not found:
        raise ValueError(f"{path} has no prompt with at least two images{_of_two_models(mode)}")
    if alone:
        logger.warning(
            "%d of %d images in %s have no other to be compared with; they are not shown", alone, total, path
        )
    if broken := [
        what for image in dict.fromkeys(i for item in found for i in item.images) if (what := image_error(image))
    ]:
        raise ValueError(f"{len(broken)} images cannot be shown: {'; '.join(broken[:3])}")
    order = generator(Stream.ANNOTATION, seed).permutation(len(found))
    keyed = _with_keys(found)
    return [keyed[place] for place in order]


def _with_keys(items: Sequence[Item]) -> list[Item]:
    """The questions with their keys: hashes of the prompt and of the images' content, in any order of the images.

    Of questions about the same images, each has a key of its own.
    """
    content = {file: sha256_file(file) for file in dict.fromkeys(file for item in items for file in item.images)}
    seen: Counter[str] = Counter()
    found = []
    for item in items:
        shown = json.dumps([item.prompt, sorted(content[file] for file in item.images)])
        key = hashlib.sha256(f"{shown}{seen[shown] or ''}".encode()).hexdigest()[:16]
        seen[shown] += 1
        found.append(replace(item, key=key, hashes=tuple(content[file] for file in item.images)))
    return found


Picture: TypeAlias = tuple[Path, str]


def _of_two_models(mode: Mode) -> str:
    return " of different models" if mode == "compare" else ""


def _groups(pictures: Sequence[Picture], most: int) -> Iterator[Sequence[Picture]]:
    """Images in parts of nearly equal size, with models in turn.

    Each part has at least two images; one that is left is asked about together with the one before it.
    """
    if len(pictures) < 2:
        return
    seen: Counter[str] = Counter()
    turns: list[tuple[int, int, Picture]] = []
    for picture in pictures:
        turns.append((seen[picture[1]], len(turns), picture))
        seen[picture[1]] += 1
    ordered = [picture for *_, picture in sorted(turns)]
    for rows in np.array_split(np.arange(len(ordered)), -(-len(ordered) // most)):
        first = rows[0] if len(rows) > 1 else rows[0] - 1
        yield ordered[first : rows[-1] + 1]


def _pairs(pictures: Sequence[Picture]) -> Iterator[Sequence[Picture]]:
    """The n-th images of each two models; without models, neighbours."""
    by_model: dict[str, list[Picture]] = {}
    for picture in pictures:
        by_model.setdefault(picture[1], []).append(picture)
    groups = list(by_model.values())
    if len(groups) == 1:
        yield from _groups(pictures, 2)
    for first in range(len(groups)):
        for second in range(first + 1, len(groups)):
            yield from zip(groups[first], groups[second], strict=False)


def _prompts(path: Path) -> Iterator[tuple[str, list[Picture]]]:
    """Prompts with their images and models."""
    if (path / INDEX).is_file():
        yield from _generated(path)
    elif path.is_file() and path.suffix.lower() in READERS:
        yield from _table(path)
    elif path.is_dir():
        for folder in sorted(entry for entry in path.iterdir() if (entry / CAPTION).is_file()):
            pictures = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
            prompt = " ".join(read_text(_inside(path, folder / CAPTION, str(folder))).split())
            yield prompt, [(_inside(path, picture, str(folder)), "") for picture in pictures]
    else:
        raise ValueError(f"{path} does not exist; expected a folder of images with prompts, or a table")


def _generated(path: Path) -> Iterator[tuple[str, list[Picture]]]:
    for number, entry in enumerate(read_json_list(path / INDEX)):
        try:
            named: dict[str, list[str]] = entry["images"]
            pictures = [
                (_inside(path, path / name, f"{path / INDEX}, entry {number}"), str(model))
                for model, names in named.items()
                for name in names
            ]
            yield str(entry["prompt"]), pictures
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path / INDEX}, entry {number}: expected prompt and images by model") from error


def _table(path: Path) -> Iterator[tuple[str, list[Picture]]]:
    rows = read_table(path, ("prompt", "image"), ("model",))
    images, errors = locate(rows, path.parent)
    if errors:
        raise ValueError(f"{path}: {errors[0]}")
    prompts: dict[str, list[Picture]] = {}
    for row, image in zip(rows, images, strict=True):
        prompts.setdefault(row.text("prompt"), []).append((_file(path.parent, image, row.place), row.text("model")))
    yield from prompts.items()


def _file(folder: Path, image: Image | None, place: str) -> Path:
    if not isinstance(image, Path):
        raise ValueError(f"{place}: the image must be a file")
    return _inside(folder, image, place)


def _inside(folder: Path, image: Path, place: str) -> Path:
    """A file of the folder.

    Raises:
        ValueError: It is elsewhere, or a link that leads elsewhere.
    """
    if not image.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{place}: {image} is outside of the folder {folder}; copy it into the folder")
    return image
