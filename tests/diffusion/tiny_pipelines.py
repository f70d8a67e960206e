"""Whole pipelines of each family with random weights, small enough for tests and built from their configurations."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from t2ifb.diffusion.models import source_of
from t2ifb.shapes.weights import PIPELINE

FAMILIES = ("stable diffusion", "sdxl", "sd3")
CONTEXT = 16
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def write_tiny(name: str, folder: Path) -> Path:
    """Write the pipeline of a family. That of `stable diffusion` is the embedded world's own and not written again."""
    if name == "stable diffusion":
        return PIPELINE
    torch.manual_seed(0)
    {"sdxl": sdxl, "sd3": sd3}[name]().save_pretrained(folder)
    return folder


def tiny_model(folder: Path, **settings: Any) -> Any:
    """The model of a written pipeline, on the CPU."""
    return source_of(folder, device="cpu", **settings).load()


def plain_pipeline(folder: Path) -> Any:
    """The pipeline as diffusers alone loads it."""
    loaded = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def tokenizer() -> CLIPTokenizer:
    """The embedded world's, with a shorter context."""
    return CLIPTokenizer.from_pretrained(PIPELINE / "tokenizer", model_max_length=CONTEXT)


def clip(kind: Any, width: int) -> Any:
    words = tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=2 * width, projection_dim=width,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=CONTEXT,
        eos_token_id=words.eos_token_id, bos_token_id=words.bos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    return kind(config).eval()


def autoencoder(channels: int, **changes: Any) -> Any:
    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    return AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=down, up_block_types=up, latent_channels=channels,
        layers_per_block=1, norm_num_groups=4, **changes,
    ).eval()  # fmt: skip


def sdxl() -> StableDiffusionXLPipeline:
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2), projection_class_embeddings_input_dim=6 * 8 + 24, cross_attention_dim=40,
    )  # fmt: skip
    scheduler = DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return StableDiffusionXLPipeline(
        vae=autoencoder(4, scaling_factor=0.13), unet=unet.eval(), scheduler=scheduler, tokenizer=tokenizer(),
        tokenizer_2=tokenizer(), text_encoder=clip(CLIPTextModel, 16),
        text_encoder_2=clip(CLIPTextModelWithProjection, 24),
    )  # fmt: skip


def sd3() -> StableDiffusion3Pipeline:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    letters = T5Tokenizer(vocab=[(piece, -float(n)) for n, piece in enumerate(pieces)], extra_ids=0)
    t5 = T5Config(
        vocab_size=len(letters), d_model=48, d_kv=8, d_ff=64, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=48, caption_projection_dim=16, pooled_projection_dim=16 + 24,
        pos_embed_max_size=12, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    vae = autoencoder(16, scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False)
    return StableDiffusion3Pipeline(
        vae=vae, transformer=transformer.eval(), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        tokenizer=tokenizer(), tokenizer_2=tokenizer(), tokenizer_3=letters,
        text_encoder=clip(CLIPTextModelWithProjection, 16), text_encoder_2=clip(CLIPTextModelWithProjection, 24),
        text_encoder_3=T5EncoderModel(t5).eval(),
    )  # fmt: skip
