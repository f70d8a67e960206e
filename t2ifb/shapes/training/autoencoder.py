"""Autoencoder between 64 x 64 x 3 images and 16 x 16 x 4 latents."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from t2ifb.shapes.training.loop import fast_autocast, fit, generator, rendered

STEPS = 2600
BATCH = 32
CROP_STEPS = 2200
CROP = 32
FOREGROUND_WEIGHT = 3.0
KL_WEIGHT = 1e-6


def build() -> AutoencoderKL:
    """An untrained autoencoder of about 0.8 million parameters."""
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )
    with torch.no_grad():
        model.quant_conv.bias[4:].fill_(-6.0)  # start with little noise; otherwise training stalls
    return model


def train(folder: Path, seed: int = 0) -> AutoencoderKL:
    """Train on clean renders. Most steps use crops around objects, at a quarter of the cost."""
    torch.manual_seed(seed)
    model = build()
    images = rendered("train", 20_000, seed=100 + seed).images
    corners = images[:, :, :2, :2].float().mean((2, 3), keepdim=True)

    def loss_at(step: int) -> Tensor:
        draw = generator(seed, 1, step)
        index = torch.randint(len(images), (BATCH,), generator=draw)
        target = images[index].float() / 255
        foreground = (target - corners[index] / 255).abs().amax(1, keepdim=True) > 0.04
        if step < CROP_STEPS:
            target, foreground = _crop(target, foreground, draw)
        target = target * 2 - 1
        with fast_autocast():
            posterior = model.encode(target).latent_dist
            mean, deviation = posterior.mean.float(), posterior.std.float()
            noise = torch.randn(mean.shape, generator=draw)
            output = model.decode(mean + deviation * noise).sample.float()
        weight = 1 + (FOREGROUND_WEIGHT - 1) * foreground
        error = output - target
        loss = (weight * (error.abs() + 2 * error**2)).mean()
        kl = 0.5 * (mean**2 + deviation**2 - 1 - 2 * deviation.log()).sum((1, 2, 3)).mean()
        return loss + KL_WEIGHT * kl

    fit("autoencoder", model, loss_at, folder, steps=STEPS, learning_rate=2e-3)
    model.eval()
    latents = encode(model, images[:2000])
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    return model


def _crop(target: Tensor, foreground: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Crops of 32 x 32 pixels around one random foreground pixel of each image."""
    size = target.shape[-1]
    pick = (torch.rand(foreground.shape, generator=draw) * (foreground + 1e-3)).flatten(1).argmax(1)
    top = (pick // size - CROP // 2).clamp(0, size - CROP)
    left = (pick % size - CROP // 2).clamp(0, size - CROP)
    rows = top[:, None] + torch.arange(CROP)
    columns = left[:, None] + torch.arange(CROP)
    batch = torch.arange(len(target))[:, None, None]
    window = (batch, slice(None), rows[:, :, None], columns[:, None, :])
    return target[window].permute(0, 3, 1, 2), foreground[window].permute(0, 3, 1, 2)


@torch.no_grad()
def encode(model: AutoencoderKL, images: Tensor, batch: int = 200) -> Tensor:
    """Posterior means of uint8 images (N, 3, 64, 64), not yet scaled: (N, 4, 16, 16) float32."""
    parts = []
    for chunk in images.split(batch):
        with fast_autocast():
            pixels = chunk.float() / 127.5 - 1
            parts.append(model.encode(pixels).latent_dist.mean.float())
    return torch.cat(parts)


@torch.no_grad()
def psnr(model: AutoencoderKL, images: Tensor) -> float:
    """Peak signal-to-noise ratio of reconstructions of uint8 images, in dB, mean over images.

    Source: the usual definition, 10 log10(1 / mean squared error) for values in [0, 1].
    """
    errors = []
    for chunk in images.split(100):
        output = model.decode(encode(model, chunk)).sample.clamp(-1, 1)
        errors.append(F.mse_loss(output / 2 + 0.5, chunk.float() / 255, reduction="none").mean((1, 2, 3)))
    return (-10 * torch.cat(errors).log10()).mean().item()
