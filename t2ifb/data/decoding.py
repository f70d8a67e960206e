"""From an image file to the RGB pixels that a viewer shows, for training, scoring, tables and sheets alike."""

import warnings
from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps

DECODING = 2
"""Raised whenever `to_rgb` gives other pixels. Keys of caches contain it, so that older results are not used again."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # such images are refused below


def to_rgb(picture: Image.Image) -> Image.Image:
    """Decode a picture: turned upright as EXIF says, 8 bits a channel, transparent parts laid on white.

    Args:
        picture: As `PIL.Image.open` gives it; only its header needs to have been read.

    Returns:
        A new picture in mode RGB. 16-bit gray values from 0 to 65535 become 0 to 255; floating point pixels are in
        [0, 1]. Of several frames it is the first.

    Raises:
        ValueError: It has too many pixels, or numbers whose white is not defined.
        OSError: It is damaged.
    """
    width, height = picture.size
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(too_large())
    picture.load()
    kind = picture.format
    with suppress(Exception):  # damaged EXIF data are no reason to refuse the pixels
        picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture = _eight_bits(picture, kind)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def too_large() -> str:
    """What is wrong with an image that Pillow takes for a decompression bomb."""
    return f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels; save it smaller"


def _eight_bits(picture: Image.Image, kind: str | None) -> Image.Image:
    """From one channel of 16 or 32 bits to mode L; Pillow would cut off all above 255.

    Raises:
        ValueError: Its white is not defined, or a number lies outside black and white.
    """
    values = np.asarray(picture, np.float64)
    white, name = (1, "floating point") if picture.mode == "F" else (65535, "whole number")
    if not (values.min() >= 0 and values.max() <= white) or (picture.mode == "I" and kind == "TIFF"):
        raise ValueError(
            f"its {name} pixels go from {values.min():g} to {values.max():g}, and which of them are black and white is "
            "only known of floating point numbers in [0, 1] and of 8 or 16 bits; save it with 8 bits"
        )
    levels = np.round(values * (255 / white)).astype(np.uint8)
    if (clear := picture.info.get("transparency")) is not None:
        levels[values == clear] = 255
    return Image.fromarray(levels)
