"""The autoencoder of the world: its geometry, its crops, its figures, and a training of few steps."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from t2ifb.shapes.training import autoencoder
from t2ifb.shapes.training.autoencoder import CROP, build, encode, psnr
from t2ifb.shapes.training.loop import generator, rendered


def test_sixty_four_pixels_become_sixteen_latents_with_little_noise() -> None:
    model = build()
    with torch.no_grad():
        posterior = model.encode(torch.rand(2, 3, 64, 64) * 2 - 1).latent_dist
        assert posterior.mean.shape == (2, 4, 16, 16)
        assert model.decode(posterior.mean).sample.shape == (2, 3, 64, 64)
    assert posterior.std.max() < 0.1
    assert 0.7e6 < sum(weight.numel() for weight in model.parameters()) < 0.9e6


def test_means_do_not_depend_on_the_batch_that_an_image_is_in() -> None:
    model, images = build().eval(), rendered("train", 5, seed=0).images
    whole, single = encode(model, images), encode(model, images, batch=1)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(whole, single, atol=0.05, rtol=0.05)  # bf16
    assert not torch.allclose(whole[0], whole[1], atol=0.05)


class Shifted:
    """An autoencoder whose latents are the pixels, and whose images are brighter by a share."""

    def __init__(self, shift: float) -> None:
        self.shift = shift

    def encode(self, pixels: Tensor) -> Any:
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=pixels))

    def decode(self, latents: Tensor) -> Any:
        return SimpleNamespace(sample=latents + 2 * self.shift)


@pytest.mark.parametrize(("shift", "decibels"), [(0.1, 20.0), (0.01, 40.0), (-0.1, 20.0)])
def test_psnr_is_that_of_the_error(shift: float, decibels: float) -> None:
    images = torch.full((150, 3, 64, 64), 128, dtype=torch.uint8)
    assert psnr(Shifted(shift), images) == pytest.approx(decibels, abs=0.01)  # type: ignore[arg-type]


def test_crops_show_a_part_of_the_object_and_of_its_own_mask() -> None:
    size, count = 64, 40
    foreground = torch.zeros(count, 1, size, size, dtype=torch.bool)
    spots = torch.randint(size, (count, 2), generator=torch.Generator().manual_seed(0))
    spots[:4] = torch.tensor([[0, 0], [0, 63], [63, 0], [63, 63]])
    foreground[torch.arange(count), 0, spots[:, 0], spots[:, 1]] = True
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    target = torch.stack([y, x, foreground.any() * y]).float().expand(count, 3, size, size)
    pixels, mask = autoencoder._crop(target, foreground, generator(0))
    assert pixels.shape == (count, 3, CROP, CROP) and mask.shape == (count, 1, CROP, CROP)
    assert (mask.sum((1, 2, 3)) == 1).all()
    for number in range(count):
        at = mask[number, 0].nonzero()[0]
        assert pixels[number, :2, at[0], at[1]].tolist() == spots[number].tolist()
        torch.testing.assert_close(pixels[number, 0, :, 0].diff(), torch.ones(CROP - 1))  # neighbours stay neighbours


def test_a_training_ends_with_latents_of_unit_deviation_and_repeats_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = rendered("train", 8, seed=0)
    monkeypatch.setattr(autoencoder, "rendered", lambda *_, **__: few)
    for name, value in (("STEPS", 3), ("CROP_STEPS", 2), ("BATCH", 4)):
        monkeypatch.setattr(autoencoder, name, value)
    models = [autoencoder.train(tmp_path / name, seed=5) for name in ("one", "other")]
    deviation = (encode(models[0], few.images) * models[0].config.scaling_factor).std().item()
    assert deviation == pytest.approx(1, abs=1e-3)
    assert not models[0].training
    torch.manual_seed(5)
    start = build()
    for one, other, before in zip(*(model.parameters() for model in (*models, start)), strict=True):
        assert torch.equal(one, other)
        assert before.shape == one.shape
    assert any(not torch.equal(a, b) for a, b in zip(models[0].parameters(), start.parameters(), strict=True))
