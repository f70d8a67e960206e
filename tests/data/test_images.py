from pathlib import Path

import numpy as np
import pytest
import torch

from t2ifb.data.images import load_image, pixel_batches
from tests.data.parts import picture


def test_an_image_is_a_tensor_between_zero_and_one(tmp_path: Path) -> None:
    image = picture(0, size=(5, 3))
    image.save(tmp_path / "image.png")
    tensor = load_image(tmp_path / "image.png")
    assert tensor.shape == (3, 3, 5)
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal((tensor * 255).round().byte().permute(1, 2, 0).numpy(), np.array(image))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_any_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    picture(0).convert(mode).save(tmp_path / "image.png")
    assert load_image(tmp_path / "image.png").shape == (3, 8, 8)


def test_a_bad_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the image .*absent.png"):
        load_image(tmp_path / "absent.png")


def test_batches_hold_images_of_one_size_each_once_in_order(tmp_path: Path) -> None:
    sizes = [(4, 4) if i % 3 else (6, 4) for i in range(20)]
    paths = [tmp_path / f"{i}.png" for i in range(20)]
    for i, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        picture(i, size).save(path)
    seen: list[int] = []
    for index, pixels in pixel_batches(paths, batch_size=4):
        assert len(index) <= 4
        assert len({sizes[i] for i in index}) == 1
        for i, image in zip(index, pixels, strict=True):
            assert torch.equal(image.float() / 255, load_image(paths[i]))
        seen += index
    assert sorted(seen) == list(range(20))
    assert [i for i in seen if i % 3] == [i for i in range(20) if i % 3]


def test_many_sizes_do_not_pile_up(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(60)]
    for i, path in enumerate(paths):
        picture(i, (4 + i, 4)).save(path)
    batches = pixel_batches(paths, batch_size=2)
    assert next(batches)[0] == [0]  # long before the last is decoded
    assert sorted(i for index, _ in batches for i in index) == list(range(1, 60))
