"""Folder of drawn images: numbered PNG files, and `prompts.json` with the files of each prompt by model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from t2ifb.utils.files import atomic_write, write_text

INDEX = "prompts.json"


def file_name(number: int, copy: int, model: str) -> str:
    """Name of an image's file, independent of the prompt.

    Args:
        number: Number of the prompt.
        copy: Number of the image among those of the prompt and model.
        model: Name of the model, such as `base` or `tuned`.
    """
    return f"{number:04d}_{copy}_{model}.png"


def write_image(path: Path, image: Tensor) -> None:
    """Write an image (3, H, W) uint8 as PNG, atomically."""
    with atomic_write(path) as file:
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")


def write_index(folder: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write `prompts.json`, the last file of a complete folder.

    Args:
        folder: The folder.
        entries: `prompt`, and `images`, a mapping from models to file names; perhaps more.
    """
    write_text(folder / INDEX, json.dumps(entries, indent=2, ensure_ascii=False))
