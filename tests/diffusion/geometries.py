"""Stable Diffusion v1.5's layers at a size for tests."""

from dataclasses import replace

from t2ifb.profiling.geometry import SD15, Geometry


def small_geometry(width: int = 32, side: int = 8) -> Geometry:
    """With few channels, and images of 8 `side` pixels."""
    wide = [width, 2 * width, 4 * width, 4 * width]
    text = {"hidden_size": width, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 2 * width}
    return replace(
        SD15,
        unet=SD15.unet | {"block_out_channels": wide, "cross_attention_dim": width, "sample_size": side},
        vae=SD15.vae | {"block_out_channels": [32, 64, 64, 64], "sample_size": 8 * side},
        text_encoder=SD15.text_encoder | text,
    )
