from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import interpolate
from torch.profiler import profile
from torchvision.transforms.v2.functional import to_pil_image

from t2ifb.scorers.preprocess import preprocess, resize, square

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


def by_torch(images: Tensor, shape: tuple[int, int]) -> Tensor:
    """The same resize by `interpolate`, whose gradient is not deterministic on CUDA."""
    for sides in ((images.shape[2], shape[1]), shape):
        images = interpolate(images, sides, mode="bicubic", antialias=True).clamp(0, 1)
    return images


def by_torch_cropped(images: Tensor, size: int) -> Tensor:
    rows, columns = (size * side // min(images.shape[2:]) for side in images.shape[2:])
    top, left = (rows - size) // 2, (columns - size) // 2
    return by_torch(images, (rows, columns))[:, :, top : top + size, left : left + size]


@pytest.mark.parametrize(
    ("before", "after"), [((512, 512), (224, 224)), ((97, 64), (97, 30)), ((20, 33), (70, 50)), ((1, 1), (8, 8))]
)
def test_values_and_gradients_are_those_of_interpolate(before: tuple[int, int], after: tuple[int, int]) -> None:
    image = noise(*before).requires_grad_()
    ours, theirs = resize(image, after), by_torch(image, after)
    torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)
    weights = torch.rand(ours.shape, generator=torch.Generator().manual_seed(1))
    inside = (theirs > 1e-4) & (theirs < 1 - 1e-4)  # a value on the border is clamped in one of them only
    gradients = [torch.autograd.grad((each * weights * inside).sum(), image)[0] for each in (ours, theirs)]
    assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[1].norm()


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_window_is_cut_out_of_the_whole(data: st.DataObject) -> None:
    before, shape = (data.draw(st.tuples(st.integers(1, 90), st.integers(1, 90))) for _ in range(2))
    top, left = (data.draw(st.integers(0, side - 1)) for side in shape)
    height, width = (data.draw(st.integers(1, side - start)) for side, start in zip(shape, (top, left), strict=True))
    image = noise(*before)
    window = resize(image, shape, (top, left, height, width))
    torch.testing.assert_close(window, resize(image, shape)[:, :, top : top + height, left : left + width])


@pytest.mark.parametrize(("height", "width"), [(3, 30_000), (1, 4000), (4000, 1)])
def test_a_very_long_image_takes_only_the_memory_of_its_crop(height: int, width: int) -> None:
    image = noise(height, width)
    with profile(profile_memory=True) as profiled:
        seen = square(image, 224)
    assert sum(max(event.self_cpu_memory_usage, 0) for event in profiled.events()) < 2**24
    rows, columns = (min(side, 14 * min(height, width)) for side in (height, width))
    top, left = (height - rows) // 2, (width - columns) // 2
    middle = image[:, :, top : top + rows, left : left + columns]
    torch.testing.assert_close(seen, by_torch_cropped(middle, 224), atol=5e-5, rtol=0)


def test_it_is_deterministic_by_torchs_own_rules() -> None:
    image = noise(40, 50).requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        gradients = [torch.autograd.grad(square(image, 16).square().sum(), image)[0] for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(*gradients)


def test_autocast_does_not_lower_its_precision() -> None:
    image = noise(50, 60).requires_grad_()

    def results() -> tuple[Tensor, Tensor]:
        seen = square(image, 16)
        return seen, torch.autograd.grad(seen.square().sum(), image)[0]

    plain = results()
    with torch.autocast("cpu", torch.bfloat16):
        cast = results()
    assert all(map(torch.equal, plain, cast))


def test_what_was_resized_without_gradients_is_resized_with_them() -> None:
    image = noise(31, 37)
    with torch.inference_mode():
        seen = preprocess(image, 16, MEAN, STD)
    image.requires_grad_()
    again = preprocess(image, 16, MEAN, STD)
    again.sum().backward()
    assert torch.equal(seen, again)


def test_tensors_without_numbers_have_its_shape() -> None:
    assert square(torch.empty(2, 3, 30, 50, device="meta"), 16).shape == (2, 3, 16, 16)


def test_fake_tensors_leave_nothing_behind() -> None:
    with FakeTensorMode():
        assert preprocess(torch.rand(1, 3, 29, 43), 16, MEAN, STD).shape == (1, 3, 16, 16)
    assert preprocess(noise(29, 43), 16, MEAN, STD).isfinite().all()


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
