"""Stable Diffusion v1.5's layers at a size for tests."""

from dataclasses import replace

from t2ifb.diffusion.models.stable_diffusion import SD15
from t2ifb.diffusion.pipeline_config import PipelineConfig


def small_geometry(width: int = 32, side: int = 8) -> PipelineConfig:
    """With few channels, and images of 8 `side` pixels."""
    wide = [width, 2 * width, 4 * width, 4 * width]
    text = {"hidden_size": width, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 2 * width}
    changes = {
        "unet": {"block_out_channels": wide, "cross_attention_dim": width, "sample_size": side},
        "vae": {"block_out_channels": [32, 64, 64, 64], "sample_size": 8 * side},
        "text_encoder": text,
    }
    return replace(SD15, parts={name: part | changes.get(name, {}) for name, part in SD15.parts.items()})
