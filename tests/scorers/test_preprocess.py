from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from t2ifb.scorers.preprocess import preprocess

PLAIN = ((0.0,) * 3, (1.0,) * 3)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def by_pillow(picture: Image.Image, size: int) -> Tensor:
    """open_clip's own path, without its normalisation."""
    transform = image_transform_v2(PreprocessCfg(size=size, mean=PLAIN[0], std=PLAIN[1]), is_train=False)
    result: Tensor = transform(picture)
    return result


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    """8-bit noise as floats (1, 3, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, height, width), generator=generator) / 255


@pytest.mark.parametrize(("height", "width"), [(512, 512), (300, 431), (97, 64), (70, 80), (40, 33), (224, 301)])
def test_the_difference_to_the_original_is_as_stated(height: int, width: int) -> None:
    image = noise(height, width)
    ours, original = preprocess(image, 64, *PLAIN)[0], by_pillow(to_pil_image(image[0]), 64)
    difference = (ours - original).abs() * 255
    assert difference.max() < 1.5
    assert difference.mean() < 1 / 3


@settings(deadline=None, max_examples=40)
@given(height=st.integers(2, 90), width=st.integers(2, 90), size=st.integers(1, 40))
def test_any_size_is_cropped_where_the_original_crops(height: int, width: int, size: int) -> None:
    ramp = torch.linspace(0, 1, width).expand(1, 3, height, width)
    ours = preprocess(ramp, size, *PLAIN)
    assert ours.shape == (1, 3, size, size)
    original = by_pillow(to_pil_image(ramp[0]), size)
    assert (ours[0] - original).abs().max() < 2.5 / 255


def test_an_image_of_the_right_size_is_only_normalised() -> None:
    image = noise(64, 64)
    shift, scale = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    assert torch.equal(preprocess(image, 64, MEAN, STD), (image - shift) / scale)


def test_gradients_reach_every_pixel_that_is_not_cut_off() -> None:
    image = (0.25 + noise(40, 50) / 2).requires_grad_()
    preprocess(image, 16, MEAN, STD).square().sum().backward()
    assert image.grad is not None
    assert (image.grad[..., 6:-6] != 0).all()


def test_half_precision_is_resampled_in_single() -> None:
    image = noise(50, 50)
    half = preprocess(image.bfloat16(), 16, *PLAIN)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, preprocess(image.bfloat16().float(), 16, *PLAIN).bfloat16())


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)]
)
def test_other_shapes_and_types_are_refused(images: Any) -> None:
    with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\)"):
        preprocess(images, 8, *PLAIN)
