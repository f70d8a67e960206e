"""What a viewer shows is what is scored: upright, 8 bits a channel, on white; also what cannot be decoded."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from t2ifb.data.images import load_image
from t2ifb.data.rankings import image_error, open_image
from tests.data.parts import picture


def pixels(path: Path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_a_picture_is_turned_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = picture(0, (12, 8)).resize((120, 80), Image.Resampling.NEAREST)
    turn = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270"}
    turn |= {7: "TRANSVERSE", 8: "ROTATE_90"}
    upright = stored.transpose(Image.Transpose[turn[orientation]]) if orientation > 1 else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image.{suffix}"
    stored.save(path, exif=exif, quality=95)
    assert open_image(path).size == upright.size
    assert np.abs(pixels(path).astype(int) - np.asarray(upright)).mean() < 12
    assert load_image(path).shape == (3, *upright.size[::-1])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_data_do_not_matter(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "image.png", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    np.testing.assert_array_equal(pixels(tmp_path / "image.png"), np.asarray(picture(0)))


def gray() -> np.ndarray:
    return np.asarray(ImageOps.grayscale(picture(0, (9, 7))))


@pytest.mark.parametrize(("suffix", "order"), [("png", "<u2"), ("tiff", "<u2"), ("tiff", ">u2"), ("pgm", "<u2")])
def test_sixteen_bits_become_eight(tmp_path: Path, suffix: str, order: str) -> None:
    sixteen = Image.fromarray((gray().astype(np.uint16) * 257).astype(order))
    sixteen.save(tmp_path / f"image.{suffix}")
    np.testing.assert_array_equal(pixels(tmp_path / f"image.{suffix}")[..., 0], gray())


def test_floating_point_pixels_go_from_zero_to_one(tmp_path: Path) -> None:
    Image.fromarray((gray() / 255).astype(np.float32)).save(tmp_path / "image.tiff")
    np.testing.assert_array_equal(pixels(tmp_path / "image.tiff")[..., 0], gray())


@pytest.mark.parametrize("values", [gray().astype(np.float32), gray() * np.float32("nan"), gray().astype(np.int32)])
def test_numbers_without_a_known_white_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "image.tiff")
    with pytest.raises(ValueError, match=r"image.tiff: its (floating point|whole number) pixels range from .*save it"):
        open_image(tmp_path / "image.tiff")


def cut_out() -> tuple[Image.Image, np.ndarray]:
    """A picture whose upper half is hidden and whose last row is half transparent, and what is seen on white."""
    colors = np.asarray(picture(1, (8, 6)))
    alpha = np.full((6, 8), 255, np.uint8)
    alpha[:3], alpha[5] = 0, 128
    share = alpha[..., None] / 255
    return Image.fromarray(np.dstack([colors, alpha])), np.round(colors * share + 255 * (1 - share))


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff"])
def test_what_is_transparent_is_white(tmp_path: Path, suffix: str) -> None:
    image, seen = cut_out()
    image.save(tmp_path / f"image.{suffix}", lossless=True)
    assert np.abs(pixels(tmp_path / f"image.{suffix}") - seen).max() <= 1


@dataclass(frozen=True)
class InMemory:
    image: Image.Image

    def open(self) -> Image.Image:
        return self.image


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBa"])
def test_every_mode_with_transparency_is_laid_on_white(mode: str) -> None:
    image = cut_out()[0]
    if mode == "PA":
        image = image.convert("RGB").quantize()
        image.putalpha(cut_out()[0].getchannel("A"))
    image = image.convert(mode)
    before = image.tobytes()
    shown = np.asarray(open_image(InMemory(image)))
    assert (shown[:3] == 255).all()
    assert not (shown[3:5] == 255).all()
    assert (image.mode, image.tobytes()) == (mode, before)


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1", "I;16"])
def test_a_colour_that_stands_for_transparent_is_white(tmp_path: Path, mode: str) -> None:
    levels = np.where(np.arange(48).reshape(6, 8) < 20, 0, 200).astype(np.uint8)
    sixteen = Image.fromarray(levels.astype(np.uint16) * 257)
    image = sixteen if mode == "I;16" else Image.fromarray(levels).convert(mode)
    image.save(tmp_path / "image.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
    shown = pixels(tmp_path / "image.png")[..., 0].ravel()
    assert (shown[:20] == 255).all()
    assert (shown[20:] == (255 if mode == "1" else 200)).all()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_one_clear_message(tmp_path: Path) -> None:
    for name, size in (("large", (10_000, 9_000)), ("bomb", (14_000, 14_000))):
        buffer = io.BytesIO()
        Image.new("1", size).save(buffer, "PNG")
        path = tmp_path / f"{name}.png"
        path.write_bytes(buffer.getvalue())
        with pytest.raises(ValueError, match=rf"{name}.png: it has more than 89,478,485 pixels; save it smaller$"):
            open_image(path)
        assert "more than 89,478,485 pixels" in str(image_error(path))
