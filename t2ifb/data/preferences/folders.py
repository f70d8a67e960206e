"""Folders with a better and a worse image for each prompt."""

import re
from collections.abc import Iterator
from pathlib import Path

from t2ifb.data.preferences.columns import ORDERED
from t2ifb.data.tables import Row
from t2ifb.utils.files import read_text

NAMES = tuple(pair for pair in ORDERED if "." not in pair[0] and "_" not in pair[0])
"""Names of the better and of the worse image, or of the folders with them."""
SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
"""Split by a name in a path."""
SHARD = re.compile(r"(train|validation|valid|val|test)(?![a-z]).*", re.IGNORECASE)
"""Name of a shard, or of a folder, that begins with its split."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
CAPTIONS = ("prompt.txt", "caption.txt")


def folder_rows(root: Path) -> list[Row]:
    """Pairs in one of three layouts; empty without any.

    - `<id>/win.png` and `<id>/lose.png`, with the prompt in `<id>/prompt.txt`, `caption.txt` or `win.txt`;
    - `win/<id>.png` and `lose/<id>.png`, with the prompt in `<id>.txt` in one of these folders or beside them;
    - either of these in folders, which are splits if their names begin with one (`SHARD`).

    Other names than win and lose are chosen and rejected, winner and loser, better and worse, high and low.

    Raises:
        ValueError: A pair lacks an image or its prompt, or only some of the folders are splits.
    """
    if not root.is_dir():
        return []
    rows = list(_pairs(root))
    if rows:
        return rows
    parts = {folder.name: list(_pairs(folder)) for folder in sorted(root.iterdir()) if folder.is_dir()}
    found = {name: SHARD.match(name) for name, some in parts.items() if some}
    splits = {name: SPLITS[match[1].lower()] for name, match in found.items() if match}
    if splits and (others := [name for name, some in parts.items() if some and name not in splits]):
        raise ValueError(f"{root}: {', '.join(others)} are no splits, but {', '.join(splits)} are; move them elsewhere")
    named = {name: {"split": split} for name, split in splits.items()}
    return [Row(row.place, row.cells | named.get(name, {})) for name, some in parts.items() for row in some]


def _pairs(root: Path) -> Iterator[Row]:
    """Pairs of both layouts in a folder."""
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    for better, worse in NAMES:
        if (root / better).is_dir() and (root / worse).is_dir():
            for image in sorted(path for path in (root / better).iterdir() if path.suffix.lower() in SUFFIXES):
                other = _image(root / worse, image.stem)
                text = [folder / f"{image.stem}.txt" for folder in (root / better, root / worse, root)]
                yield _row(image, other, text, f"{root / worse / image.name}")
            for image in sorted(path for path in (root / worse).iterdir() if path.suffix.lower() in SUFFIXES):
                if _image(root / better, image.stem) is None:
                    raise ValueError(f"{image} has no image to compare with; expected {root / better / image.name}")
            return
        for folder in folders:
            if (first := _image(folder, better)) is None:
                if (other := _image(folder, worse)) is not None:
                    raise ValueError(f"{other} has no image to compare with; expected {folder / better}.png")
            else:
                text = [folder / name for name in (*CAPTIONS, f"{better}.txt", f"{worse}.txt")]
                yield _row(first, _image(folder, worse), text, f"{folder / worse}.png")


def _row(better: Path, worse: Path | None, captions: list[Path], expected: str) -> Row:
    if worse is None:
        raise ValueError(f"{better} has no image to compare with; expected {expected}")
    caption = next((path for path in captions if path.is_file()), None)
    if caption is None:
        raise ValueError(f"{better} has no prompt; expected a text file {captions[0]}")
    prompt = " ".join(read_text(caption).split())
    return Row(str(better), {"prompt": prompt, "chosen": str(better.absolute()), "rejected": str(worse.absolute())})


def _image(folder: Path, stem: str) -> Path | None:
    """The image of a name in any of the formats."""
    names = [f"{stem}{end}" for suffix in SUFFIXES for end in (suffix, suffix.upper())]
    return next((path for name in names if (path := folder / name).is_file()), None)
