"""Decode image files to RGB pixels as a viewer shows them, for training, scoring, tables and pages."""

import warnings
from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps

DECODING = 2
"""Version of `to_rgb`, increased when its pixels change. Cache keys contain it, so that old entries are not reused."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # such images are rejected below


def to_rgb(picture: Image.Image) -> Image.Image:
    """Decode a picture: EXIF rotation applied, 8 bits per channel, transparency on white.

    Args:
        picture: Result of `PIL.Image.open`; its pixels need not be loaded yet.

    Returns:
        A new picture in mode RGB. 16-bit gray values from 0 to 65535 become 0 to 255; floating point pixels must be in
        [0, 1]. For animations, the first frame.

    Raises:
        ValueError: The picture has too many pixels, or a value range without a defined white.
        OSError: The file is damaged.
    """
    width, height = picture.size
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(too_large())
    picture.load()
    kind = picture.format
    with suppress(Exception):  # pixels are usable even if the EXIF data are damaged
        picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture = _eight_bits(picture, kind)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def too_large() -> str:
    """Message for an image that Pillow rejects as a decompression bomb."""
    return f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels; save it smaller"


def _eight_bits(picture: Image.Image, kind: str | None) -> Image.Image:
    """Convert one channel of 16 or 32 bits to mode L. Pillow would clip values above 255.

    Raises:
        ValueError: White is not defined for this type, or a value is out of range.
    """
    values = np.asarray(picture, np.float64)
    white, name = (1, "floating point") if picture.mode == "F" else (65535, "whole number")
    if not (values.min() >= 0 and values.max() <= white) or (picture.mode == "I" and kind == "TIFF"):
        raise ValueError(
            f"its {name} pixels range from {values.min():g} to {values.max():g}; supported are floating point numbers "
            "in [0, 1] and integers of 8 or 16 bits; save it with 8 bits"
        )
    levels = np.round(values * (255 / white)).astype(np.uint8)
    if (clear := picture.info.get("transparency")) is not None:
        levels[values == clear] = 255
    return Image.fromarray(levels)
