"""Stable Diffusion v1.x (arXiv 2112.10752): a U-Net on the latents of an autoencoder, with one text encoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from t2ifb.diffusion.lora import LoRAFormat
from t2ifb.diffusion.model import Conditioning
from t2ifb.diffusion.pipeline_config import TAESD_ID, PipelineConfig
from t2ifb.diffusion.pipeline_model import Family, PipelineModel
from t2ifb.diffusion.pipeline_source import PipelineSource


def states(encoders: Mapping[str, Any], tokens: Mapping[str, Tensor], settings: Any) -> Conditioning:
    """`states` (1, L, D): the text encoder's last hidden states."""
    return Conditioning({"states": encoders["text_encoder"](tokens["text_encoder"]).last_hidden_state})


def call(model: PipelineModel, latents: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
    """The U-Net's output (B, C, H, W)."""
    output: Tensor = model.denoiser(latents, time, conditioning["states"]).sample
    return output


CLIP_L = {
    "architectures": ["CLIPTextModel"],
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 77,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "out_channels": 3,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
"""Autoencoder of Stable Diffusion v1, without its sizes; the later families change some values."""
SD15_IDS = ("stable-diffusion-v1-5/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5")
SD15 = PipelineConfig(
    {
        "unet": {
            "_class_name": "UNet2DConditionModel",
            "attention_head_dim": 8,
            "block_out_channels": [320, 640, 1280, 1280],
            "cross_attention_dim": 768,
            "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
            "in_channels": 4,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "out_channels": 4,
            "sample_size": 64,
            "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        },
        "vae": VAE | {"sample_size": 512, "scaling_factor": 0.18215},
        "text_encoder": CLIP_L,
        "scheduler": {
            "_class_name": "PNDMScheduler",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
        },
    }
)
"""Stable Diffusion v1.5 as published: 512 x 512 images, 859.52 M parameters in the U-Net.

Class defaults that affect neither size nor schedule are omitted.
"""


FAMILY = Family(
    LoRAFormat("StableDiffusionPipeline", "unet", ("to_q", "to_k", "to_v", "to_out.0"), kohya=True),
    networks={"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"},
    tokenizers={"text_encoder": "tokenizer"},
    states=states,
    call=call,
    published=SD15,
    name="Stable Diffusion v1.5",
    ids=SD15_IDS,
    tiny_decoder=TAESD_ID,
    left_out=("safety_checker",),
)


@dataclass(frozen=True)
class StableDiffusionSource(PipelineSource):
    """A `StableDiffusionPipeline` before it is built, such as `stable-diffusion-v1-5/stable-diffusion-v1-5`."""

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline",)
    family: ClassVar[Family] = FAMILY
