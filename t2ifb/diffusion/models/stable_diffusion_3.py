"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): a rectified flow with a transformer and up to three text encoders."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from t2ifb.diffusion.lora import LoRAFormat
from t2ifb.diffusion.model import Conditioning
from t2ifb.diffusion.models.sdxl import CLIP_BIG_G
from t2ifb.diffusion.models.stable_diffusion import CLIP_L, VAE
from t2ifb.diffusion.pipeline_config import PipelineConfig
from t2ifb.diffusion.pipeline_model import Family, PipelineModel
from t2ifb.diffusion.pipeline_source import PipelineSource
from t2ifb.diffusion.source import absent_encoders

T5 = "text_encoder_3"
MAX_SEQUENCE_LENGTH = 256
"""Default of the pipeline's call."""


def states(encoders: Mapping[str, Any], tokens: Mapping[str, Tensor], settings: Any) -> Conditioning:
    """`clip` (1, L, D): penultimate hidden states of both CLIPs; `pooled` (1, P): their embeddings; `t5` (1, M, E)."""
    outputs = [encoders[name](ids, output_hidden_states=True) for name, ids in tokens.items() if name != T5]
    found = {
        "clip": torch.cat([output.hidden_states[-2] for output in outputs], dim=-1),
        "pooled": torch.cat([output.text_embeds for output in outputs], dim=-1),
    }
    return Conditioning(found | ({"t5": encoders[T5](tokens[T5]).last_hidden_state} if T5 in encoders else {}))


def call(model: PipelineModel, latents: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
    """The transformer's output (B, C, H, W). Without T5 its states are zeros."""
    clip, width = conditioning["clip"], model.denoiser.config.joint_attention_dim
    t5 = conditioning.tensors.get("t5")
    if t5 is None:
        t5 = clip.new_zeros(len(clip), model.settings.max_sequence_length, width)
    output: Tensor = model.denoiser(
        hidden_states=latents,
        timestep=time,
        encoder_hidden_states=torch.cat([pad(clip, (0, width - clip.shape[-1])), t5], dim=1),
        pooled_projections=conditioning["pooled"],
        return_dict=False,
    )[0]
    return output


SD35_MEDIUM = PipelineConfig(
    {
        "transformer": {
            "_class_name": "SD3Transformer2DModel",
            "attention_head_dim": 64,
            "caption_projection_dim": 1536,
            "dual_attention_layers": list(range(13)),
            "in_channels": 16,
            "joint_attention_dim": 4096,
            "num_attention_heads": 24,
            "num_layers": 24,
            "out_channels": 16,
            "patch_size": 2,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 384,
            "qk_norm": "rms_norm",
            "sample_size": 128,
        },
        "vae": VAE
        | {
            "latent_channels": 16,
            "sample_size": 1024,
            "scaling_factor": 1.5305,
            "shift_factor": 0.0609,
            "use_post_quant_conv": False,
            "use_quant_conv": False,
        },
        "text_encoder": CLIP_L | {"architectures": ["CLIPTextModelWithProjection"]},
        "text_encoder_2": CLIP_BIG_G,
        T5: {
            "architectures": ["T5EncoderModel"],
            "d_ff": 10240,
            "d_kv": 64,
            "d_model": 4096,
            "feed_forward_proj": "gated-gelu",
            "num_heads": 64,
            "num_layers": 24,
            "vocab_size": 32128,
        },
        "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
    },
    decoder={"_class_name": "AutoencoderTiny", "latent_channels": 16},
)
"""Stable Diffusion 3.5 medium as published: 1024 x 1024 images, 2,243.17 M parameters in the transformer.

Class defaults that affect neither size nor schedule are omitted.
"""
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Attention projections of images and of text."""
FAMILY = Family(
    LoRAFormat("StableDiffusion3Pipeline", "transformer", TARGETS),
    networks={
        "transformer": "SD3Transformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        T5: "T5EncoderModel",
    },
    tokenizers={"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", T5: "tokenizer_3"},
    states=states,
    call=call,
    published=SD35_MEDIUM,
    name="Stable Diffusion 3.5 medium",
    ids=("stabilityai/stable-diffusion-3.5-medium",),
    tiny_decoder="madebyollin/taesd3",
    optional=(T5,),
)


@dataclass(frozen=True)
class StableDiffusion3Source(PipelineSource):
    """A `StableDiffusion3Pipeline` before it is built, such as `stabilityai/stable-diffusion-3.5-medium`.

    Attributes:
        t5: Use the third text encoder, if the pipeline has it. Its weights are the largest of the pipeline.
        max_sequence_length: Number of tokens of the third text encoder.
    """

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusion3Pipeline",)
    family: ClassVar[Family] = FAMILY
    t5: bool = True
    max_sequence_length: int = MAX_SEQUENCE_LENGTH

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_sequence_length < 1:
            raise ValueError(f"max_sequence_length={self.max_sequence_length} must be at least 1")

    @property
    def lengths(self) -> dict[str, int]:
        """Number of tokens by text encoder, where it is not the tokenizer's own."""
        return {T5: self.max_sequence_length}

    def call_arguments(self) -> dict[str, Any]:
        """Also the number of tokens."""
        own = self.max_sequence_length
        return super().call_arguments() | ({} if own == MAX_SEQUENCE_LENGTH else {"max_sequence_length": own})

    def absent(self) -> tuple[str, ...]:
        """The third text encoder and its tokenizer without `t5`, or if the pipeline's folder lacks them."""
        lacking = T5 in absent_encoders(Path(self.source).expanduser())
        return (T5, "tokenizer_3") if lacking or not self.t5 else ()
