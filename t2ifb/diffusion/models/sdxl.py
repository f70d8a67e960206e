"""Stable Diffusion XL (arXiv 2307.01952): a U-Net with two text encoders; pooled embedding and sizes are conditions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from t2ifb.diffusion.lora import LoRAFormat
from t2ifb.diffusion.model import Conditioning
from t2ifb.diffusion.models.stable_diffusion import CLIP_L, VAE
from t2ifb.diffusion.pipeline_config import PipelineConfig
from t2ifb.diffusion.pipeline_model import Family, PipelineModel
from t2ifb.diffusion.pipeline_source import PipelineSource


def states(encoders: Mapping[str, Any], tokens: Mapping[str, Tensor], settings: Any) -> Conditioning:
    """`states` (1, L, D): the penultimate hidden states of both encoders; `pooled` (1, P): the second's embedding."""
    outputs = [encoders[name](ids, output_hidden_states=True) for name, ids in tokens.items()]
    hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    return Conditioning({"states": hidden, "pooled": outputs[-1].text_embeds})


def call(model: PipelineModel, latents: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
    """The U-Net's output (B, C, H, W)."""
    settings: StableDiffusionXLSource = model.settings
    sizes = (*(settings.original_size or model.image_size), *settings.crop, *(settings.target_size or model.image_size))
    added = {"text_embeds": conditioning["pooled"], "time_ids": _on(latents.device, sizes).expand(len(latents), -1)}
    output: Tensor = model.denoiser(latents, time, conditioning["states"], added_cond_kwargs=added).sample
    return output


_COPIES: dict[tuple[torch.device, tuple[int, ...]], Tensor] = {}
"""Sizes on a device, copied there once: a copy makes the CPU wait for the GPU."""


def _on(device: torch.device, sizes: tuple[int, ...]) -> Tensor:
    if (device, sizes) not in _COPIES:
        _COPIES[device, sizes] = torch.tensor([sizes], dtype=torch.float32).to(device)
    return _COPIES[device, sizes]


CLIP_BIG_G = {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "max_position_embeddings": 77,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
    "vocab_size": 49408,
}
SDXL = PipelineConfig(
    {
        "unet": {
            "_class_name": "UNet2DConditionModel",
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "attention_head_dim": [5, 10, 20],
            "block_out_channels": [320, 640, 1280],
            "cross_attention_dim": 2048,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "in_channels": 4,
            "layers_per_block": 2,
            "out_channels": 4,
            "projection_class_embeddings_input_dim": 2816,
            "sample_size": 128,
            "transformer_layers_per_block": [1, 2, 10],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "use_linear_projection": True,
        },
        "vae": VAE | {"force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025},
        "text_encoder": CLIP_L,
        "text_encoder_2": CLIP_BIG_G,
        "scheduler": {
            "_class_name": "EulerDiscreteScheduler",
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "steps_offset": 1,
            "timestep_spacing": "leading",
        },
    }
)
"""Stable Diffusion XL 1.0 as published: 1024 x 1024 images, 2,567.46 M parameters in the U-Net.

Class defaults that affect neither size nor schedule are omitted.
"""
FAMILY = Family(
    LoRAFormat("StableDiffusionXLPipeline", "unet", ("to_q", "to_k", "to_v", "to_out.0"), kohya=True),
    networks={
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "CLIPTextModelWithProjection",
    },
    tokenizers={"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"},
    states=states,
    call=call,
    published=SDXL,
    name="Stable Diffusion XL 1.0",
    ids=("stabilityai/stable-diffusion-xl-base-1.0",),
    tiny_decoder="madebyollin/taesdxl",
)


@dataclass(frozen=True)
class StableDiffusionXLSource(PipelineSource):
    """A `StableDiffusionXLPipeline` before it is built, such as `stabilityai/stable-diffusion-xl-base-1.0`.

    The empty prompt has a conditioning of zeros if the pipeline says `force_zeros_for_empty_prompt`.

    Attributes:
        original_size: Height and width in pixels before cropping; by default those of the images.
        crop: Top and left edge of the crop in pixels.
        target_size: Height and width in pixels after cropping; by default those of the images.
    """

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionXLPipeline",)
    family: ClassVar[Family] = FAMILY
    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] | None = None

    def call_arguments(self) -> dict[str, Any]:
        """Also the sizes that the model is conditioned on."""
        sizes = {"original_size": self.original_size, "target_size": self.target_size}
        crop = {"crops_coords_top_left": tuple(self.crop)} if tuple(self.crop) != (0, 0) else {}
        return super().call_arguments() | {name: tuple(size) for name, size in sizes.items() if size} | crop
