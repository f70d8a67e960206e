"""Latents and images: the shape of a sample's latents, and decoding and encoding by an autoencoder."""

from typing import Any

import torch
from torch import Tensor

from t2ifb.utils.devices import computed_in


def latent_shape(denoiser: Any, vae: Any, height: int | None, width: int | None) -> tuple[int, int, int]:
    """(C, H, W) of one sample's latents.

    Args:
        denoiser: The network; its configuration has the usual size of latents, and a patch size if it has patches.
        vae: `AutoencoderKL`.
        height: Pixels of an image; None for the size that the denoiser was trained on.
        width: As `height`.

    Raises:
        ValueError: The latents of such images are no whole number of pixels or patches, or more than the denoiser has
            positions for.
    """
    settings, factor = denoiser.config, _factor(vae)
    usual = settings.sample_size
    sides = [usual, usual] if isinstance(usual, int) else list(usual)
    patch = settings.get("patch_size") or 1
    most = settings.get("pos_embed_max_size")
    for place, (name, pixels) in enumerate((("height", height), ("width", width))):
        if pixels is None:
            continue
        if pixels < 1 or pixels % (factor * patch):
            raise ValueError(f"{name}={pixels} must be a multiple of {factor * patch} pixels")
        if most is not None and pixels // factor > most * patch:
            raise ValueError(f"{name}={pixels} must be at most {most * patch * factor} pixels for this model")
        sides[place] = pixels // factor
    return settings.in_channels, sides[0], sides[1]


def image_size(shape: tuple[int, int, int], vae: Any) -> tuple[int, int]:
    """Height and width in pixels of the image of latents with this shape (C, H, W)."""
    return shape[1] * _factor(vae), shape[2] * _factor(vae)


def _factor(vae: Any) -> int:
    """Pixels of an image per pixel of its latents, along one side."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def decoded(latents: Tensor, vae: Any, tiny: Any = None) -> Tensor:
    """Images (B, 3, H, W) float32 in [0, 1], computed in the decoder's own precision, outside autocast.

    Args:
        latents: (B, C, h, w), scaled for the denoiser.
        vae: `AutoencoderKL`.
        tiny: `AutoencoderTiny` that decodes instead when gradients are enabled.
    """
    decoder = tiny if tiny is not None and torch.is_grad_enabled() else vae
    settings = decoder.config
    scaled = latents / settings.scaling_factor + (getattr(settings, "shift_factor", None) or 0)
    with torch.autocast(latents.device.type, enabled=False):
        images = computed_in(decoder.dtype, lambda each: decoder.decode(each).sample, scaled)
    return (images / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def encoded(images: Tensor, vae: Any) -> Tensor:
    """The mean (B, C, h, w) float32 of the autoencoder's distribution, scaled for the denoiser.

    Args:
        images: (B, 3, H, W) in [0, 1].
        vae: `AutoencoderKL`.
    """
    settings = vae.config
    with torch.autocast(images.device.type, enabled=False):
        latents: Tensor = vae.encode((2 * images - 1).to(vae.dtype)).latent_dist.mode().float()
    return (latents - (getattr(settings, "shift_factor", None) or 0)) * settings.scaling_factor
