"""Text-to-image model: a latent diffusion U-Net with its text tower.

As in the first latent diffusion models (Rombach et al., arXiv 2112.10752, section 4.3.1) the text tower is trained
together with the U-Net.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from t2ifb.shapes.training.autoencoder import encode
from t2ifb.shapes.training.loop import fast_autocast, fit, generator, rendered
from t2ifb.shapes.training.vocabulary import CONTEXT_LENGTH, build_tokenizer

STEPS = 3000
BATCH = 32
WIDTH = 128
CONDITION_DROPOUT = 0.1
MIN_SNR_GAMMA = 5.0
NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "prediction_type": "epsilon",
}
"""Stable Diffusion v1.5's noise schedule."""


class TextToLatent(nn.Module):
    """U-Net and text tower, trained jointly."""

    def __init__(self, vocabulary_size: int, end_token: int) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(64, 96),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary_size,
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT_LENGTH,
                bos_token_id=end_token - 1,
                eos_token_id=end_token,
                pad_token_id=end_token,
                projection_dim=WIDTH,
            )
        )

    def forward(self, noisy: Tensor, timesteps: Tensor, token_ids: Tensor) -> Tensor:
        """Predict the noise in latents (B, 4, 16, 16)."""
        states = self.text_encoder(input_ids=token_ids).last_hidden_state
        return self.unet(noisy, timesteps, states).sample


def train(autoencoder: AutoencoderKL, folder: Path, seed: int = 0, images: int = 16_000) -> StableDiffusionPipeline:
    """Train on latents of clean renders of training scenes: epsilon prediction, min-SNR weights (arXiv 2303.09556)."""
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    model = TextToLatent(len(tokenizer), tokenizer.eos_token_id)
    model.unet.set_default_attn_processor()
    scenes, _, pixels = rendered("train", images, seed=200 + seed)
    latents = encode(autoencoder, pixels) * autoencoder.config.scaling_factor
    token_ids = tokenizer(
        [scene.prompt for scene in scenes], padding="max_length", max_length=CONTEXT_LENGTH, return_tensors="pt"
    ).input_ids
    empty = tokenizer("", padding="max_length", max_length=CONTEXT_LENGTH, return_tensors="pt").input_ids
    noise_schedule = DDPMScheduler(**NOISE)
    snr = noise_schedule.alphas_cumprod / (1 - noise_schedule.alphas_cumprod)
    weights = snr.clamp(max=MIN_SNR_GAMMA) / snr

    def loss_at(step: int) -> Tensor:
        draw = generator(seed, 2, step)
        index = torch.randint(len(latents), (BATCH,), generator=draw)
        timesteps = torch.randint(1000, (BATCH,), generator=draw)
        noise = torch.randn(BATCH, *latents.shape[1:], generator=draw)
        dropped = torch.rand(BATCH, 1, generator=draw) < CONDITION_DROPOUT
        noisy = noise_schedule.add_noise(latents[index], noise, timesteps)
        with fast_autocast():
            predicted = model(noisy, timesteps, torch.where(dropped, empty, token_ids[index])).float()
        error = F.mse_loss(predicted, noise, reduction="none").mean((1, 2, 3))
        return (weights[timesteps] * error).mean()

    trained: Any = fit("diffusion", model, loss_at, folder, steps=STEPS, learning_rate=1e-3, ema_decay=0.999)
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=trained.text_encoder.eval(),
        tokenizer=tokenizer,
        unet=trained.unet.eval(),
        scheduler=DDIMScheduler(**NOISE, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
