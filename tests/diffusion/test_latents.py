"""The shape of latents, and the way from latents to images and back."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from t2ifb.diffusion.latents import decoded, encoded, image_size, latent_shape
from tests.diffusion.tiny_pipelines import autoencoder

VAE: Any = SimpleNamespace(config=SimpleNamespace(block_out_channels=(1, 1, 1, 1)))


def denoiser(**settings: Any) -> Any:
    return SimpleNamespace(config=Settings({"in_channels": 4, "sample_size": 64, **settings}))


class Settings(dict[str, Any]):
    __getattr__ = dict.__getitem__


def test_the_shape_is_the_denoisers_own_or_that_of_the_wished_images() -> None:
    assert latent_shape(denoiser(), VAE, None, None) == (4, 64, 64)
    assert latent_shape(denoiser(sample_size=[32, 64]), VAE, None, None) == (4, 32, 64)
    assert latent_shape(denoiser(), VAE, 768, None) == (4, 96, 64)
    assert latent_shape(denoiser(patch_size=2), VAE, 1024, 528) == (4, 128, 66)
    assert image_size((4, 96, 64), VAE) == (768, 512)


@pytest.mark.parametrize(("settings", "height"), [({}, 12), ({}, 0), ({"patch_size": 2}, 1032)])
def test_images_of_a_fraction_of_a_patch_are_refused(settings: dict[str, Any], height: int) -> None:
    with pytest.raises(ValueError, match=f"height={height} must be a multiple of (8|16) pixels"):
        latent_shape(denoiser(**settings), VAE, height, None)


def test_images_beyond_the_positions_are_refused() -> None:
    few = denoiser(patch_size=2, pos_embed_max_size=64)
    assert latent_shape(few, VAE, 1024, 1024) == (4, 128, 128)
    with pytest.raises(ValueError, match="width=1040 must be at most 1024 pixels"):
        latent_shape(few, VAE, 1024, 1040)


def test_scale_and_shift_are_undone() -> None:
    torch.manual_seed(0)
    vae = autoencoder(4, scaling_factor=0.5, shift_factor=0.25).requires_grad_(False)
    latents = torch.randn(2, 4, 4, 4, requires_grad=True)
    images = decoded(latents, vae)
    expected = (vae.decode(latents * 2 + 0.25).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images, expected)
    assert torch.autograd.grad(images.sum(), latents)[0].any()
    means = vae.encode(2 * images - 1).latent_dist.mode()
    torch.testing.assert_close(encoded(images, vae), ((means - 0.25) * 0.5).detach())


def test_the_tiny_decoder_is_used_with_gradients_only() -> None:
    torch.manual_seed(0)
    vae, tiny = autoencoder(4), autoencoder(4)
    latents = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        assert torch.equal(decoded(latents, vae, tiny), decoded(latents, vae))
    assert torch.equal(decoded(latents, vae, tiny), decoded(latents, tiny))
