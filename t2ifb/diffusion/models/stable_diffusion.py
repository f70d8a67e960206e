"""Stable Diffusion v1.x (arXiv 2112.10752): a U-Net on the latents of an autoencoder, with one text encoder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from t2ifb.diffusion.lora import LoRAFormat
from t2ifb.diffusion.model import DECODER, DENOISER, TEXT, Conditioning, Guidance, guided
from t2ifb.diffusion.path import GaussianPath
from t2ifb.diffusion.pipeline_config import TAESD_ID, BlankTokenizer, PipelineConfig, network_of
from t2ifb.diffusion.source import quiet, read_pipeline, read_tiny_decoder
from t2ifb.utils.devices import computed_in, device_of, dtype_of

REMEMBERED = 10_000
"""Prompts whose conditioning is kept, the latest ones: 1.2 GB in half precision at the size of v1.5."""


class StableDiffusionModel(nn.Module):
    """Implementation of `TextToImageModel` with the parts of a `StableDiffusionPipeline`."""

    lora_format = LoRAFormat("StableDiffusionPipeline", "unet", ("to_q", "to_k", "to_v", "to_out.0"))

    def __init__(
        self,
        unet: nn.Module,
        vae: nn.Module,
        text_encoder: nn.Module,
        tokenizer: Callable[..., Any],
        scheduler_config: Mapping[str, Any],
        decoder: nn.Module | None = None,
    ) -> None:
        """Freeze the parts of a pipeline.

        Args:
            unet: `UNet2DConditionModel`.
            vae: `AutoencoderKL`.
            text_encoder: `CLIPTextModel`.
            tokenizer: `CLIPTokenizer`.
            scheduler_config: Configuration of the pipeline's scheduler, which defines the path.
            decoder: `AutoencoderTiny` that replaces the VAE in `decode` when gradients are enabled.
        """
        from diffusers import DDPMScheduler

        super().__init__()
        self.denoiser: Any = unet
        self.vae: Any = vae
        self.text_encoder: Any = text_encoder
        self.decoder: Any = decoder
        self.tokenizer: Any = tokenizer
        scheduler: Any = DDPMScheduler.from_config(dict(scheduler_config))
        self.path = GaussianPath.variance_preserving(scheduler.alphas_cumprod, scheduler_config)
        settings: Any = self.denoiser.config
        height, width = (settings.sample_size,) * 2 if isinstance(settings.sample_size, int) else settings.sample_size
        self.latent_shape: tuple[int, int, int] = (settings.in_channels, height, width)
        self._remembered = lru_cache(REMEMBERED)(self._encode)
        self.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """See `TextToImageModel`, as for all public members."""
        return torch.device(self.denoiser.device)

    def networks(self) -> dict[str, list[nn.Module]]:
        """U-Net, text encoder, and the autoencoder with the tiny one if there is one."""
        decoders = [self.vae, *([] if self.decoder is None else [self.decoder])]
        return {TEXT: [self.text_encoder], DENOISER: [self.denoiser], DECODER: decoders}

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """`states` (B, L, D): the text encoder's last hidden states, in the type of the U-Net."""
        return Conditioning.cat([self._remembered(prompt) for prompt in prompts]).to(self.device, self.denoiser.dtype)

    @torch.no_grad()
    def _encode(self, prompt: str) -> Conditioning:
        """Encode one prompt, outside autocast; its states do not depend on the time of the first call."""
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer([prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        device = self.text_encoder.device
        with torch.autocast(device.type, enabled=False):
            states: Tensor = self.text_encoder(tokens.input_ids.to(device)).last_hidden_state
        return Conditioning({"states": states.cpu()})

    def too_long(self, prompts: Sequence[str]) -> int:
        """Number of prompts with more tokens than the context."""
        ids = self.tokenizer(list(prompts), padding=False, truncation=False, verbose=False).input_ids
        return sum(len(each) > self.tokenizer.model_max_length for each in ids)

    def predict(
        self, latents: Tensor, time: Tensor, conditioning: Conditioning, guidance: Guidance | None = None
    ) -> Tensor:
        """The U-Net's output (B, C, H, W) float32."""
        return guided(self._call, self.denoiser, latents, time, conditioning, guidance)

    def _call(self, latents: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        output: Tensor = self.denoiser(latents.to(self.denoiser.dtype), time, conditioning["states"]).sample.float()
        return output

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [0, 1], computed in the decoder's own precision, outside autocast."""
        decoder = self.decoder if self.decoder is not None and torch.is_grad_enabled() else self.vae
        settings = decoder.config
        scaled = latents / settings.scaling_factor + (getattr(settings, "shift_factor", None) or 0)
        with torch.autocast(latents.device.type, enabled=False):
            images = computed_in(decoder.dtype, lambda each: decoder.decode(each).sample, scaled)
        return (images / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """The mean of the VAE's distribution."""
        settings = self.vae.config
        with torch.autocast(images.device.type, enabled=False):
            latents: Tensor = self.vae.encode((2 * images - 1).to(self.vae.dtype)).latent_dist.mode().float()
        return (latents - (getattr(settings, "shift_factor", None) or 0)) * settings.scaling_factor


@dataclass(frozen=True)
class StableDiffusionSource:
    """Description of a model in `StableDiffusionPipeline`'s format, before it is built (see `ModelSource`).

    Attributes:
        source: Hub id such as `stable-diffusion-v1-5/stable-diffusion-v1-5`, a folder in `diffusers`' format, or a
            single `.safetensors` file.
        variant: Variant of the files, such as `fp16`.
        config: For a single file: folder or hub id of a pipeline of the same kind, for its configuration.
        precision: Precision of the frozen weights. Adapters are always float32.
        decoder_precision: Precision of the decoder. fp16 overflows in some autoencoders.
        tiny_decoder: Folder or hub id of an `AutoencoderTiny` that decodes when gradients are needed.
        gradient_checkpointing: Recompute U-Net and decoder in the backward pass instead of storing activations.
        device: Device for `load`; `auto` is the GPU if one exists.
    """

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline",)
    source: str
    variant: str | None = None
    config: str | None = None
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    decoder_precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    tiny_decoder: str | None = None
    gradient_checkpointing: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        for setting in ("precision", "decoder_precision"):
            dtype_of(getattr(self, setting), setting)

    def load(self) -> StableDiffusionModel:
        """Build the model, without the safety checker.

        Raises:
            ValueError: The weights are missing, cannot be downloaded, or are not such a pipeline.
        """
        pipeline = self.pipeline()
        parts = {name: getattr(pipeline, name) for name in (*NETWORKS, "tokenizer")}
        tiny = None if self.tiny_decoder is None else read_tiny_decoder(self.tiny_decoder)
        return self._assembled(parts, pipeline.scheduler.config, tiny)

    def pipeline(self) -> Any:
        """The pipeline, with its VAE in `decoder_precision`. Plain `diffusers` needs both precisions to be equal.

        Raises:
            ValueError: As in `load`.
        """
        from diffusers import StableDiffusionPipeline

        # Types by part avoid rounding the VAE to the type of the U-Net first.
        dtypes = {"default": dtype_of(self.precision), "vae": dtype_of(self.decoder_precision)}
        return read_pipeline(
            StableDiffusionPipeline, self.source, dtypes, self.variant, self.config, safety_checker=None
        )

    def on_meta(self) -> StableDiffusionModel:
        """The model on the `meta` device, with a tokenizer that returns the same tokens for every text.

        Raises:
            ValueError: The path does not exist, or the folder has another format.
        """
        config = self._config()
        with torch.device("meta"):
            parts: dict[str, Any] = {name: config.network(name) for name in NETWORKS}
            tiny = None if self.tiny_decoder is None else network_of(config.decoder)
        for network in parts.values():
            nn.Module.to(network, dtype_of(self.precision))  # the networks' own `to` warns of other types
        parts["tokenizer"] = BlankTokenizer(config.context)
        return replace(self, device="meta")._assembled(parts, config.parts["scheduler"], tiny)

    def notes(self) -> tuple[str, ...]:
        """Assumptions of `on_meta`."""
        return self._config().notes

    def fitting_tiny_decoder(self) -> str | None:
        """TAESD, which decodes only the latents of Stable Diffusion's first versions."""
        scale = SD15.parts["vae"]["scaling_factor"]
        return TAESD_ID if self._config().parts["vae"].get("scaling_factor", scale) == scale else None

    def _config(self) -> PipelineConfig:
        """Configurations of the parts: the model's own where they are on this machine, else those of v1.5."""
        found = PipelineConfig.of(self.source, self.config, NETWORKS, SD15, "Stable Diffusion v1.5", *SD15_IDS)
        return found.with_tiny_decoder(self.tiny_decoder)

    def _assembled(self, parts: Mapping[str, Any], scheduler_config: Mapping[str, Any], tiny: Any) -> Any:
        decoders = [parts["vae"], *([] if tiny is None else [tiny])]
        with quiet():
            for network in decoders:
                network.to(dtype_of(self.decoder_precision))
        if self.gradient_checkpointing:
            for network in (parts["unet"], decoders[-1]):
                network.enable_gradient_checkpointing()
        model = StableDiffusionModel(**parts, scheduler_config=scheduler_config, decoder=tiny)
        model.denoiser.to(memory_format=torch.channels_last)
        return model.to(device_of(self.device))


NETWORKS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
"""Class of each network, by part of the pipeline."""
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
        "vae": {
            "_class_name": "AutoencoderKL",
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "in_channels": 3,
            "latent_channels": 4,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "out_channels": 3,
            "sample_size": 512,
            "scaling_factor": 0.18215,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
        },
        "text_encoder": {
            "architectures": ["CLIPTextModel"],
            "hidden_act": "quick_gelu",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "max_position_embeddings": 77,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "projection_dim": 768,
            "vocab_size": 49408,
        },
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
