"""The text-to-image model that all families share, made of the parts of a `diffusers` pipeline."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2ifb.diffusion.latents import decoded, encoded, image_size, latent_shape
from t2ifb.diffusion.lora import LoRAFormat
from t2ifb.diffusion.model import DECODER, DENOISER, TEXT, Conditioning, Guidance, guided
from t2ifb.diffusion.pipeline_config import PipelineConfig, path_of
from t2ifb.diffusion.text import States, TextEncoders


@dataclass(frozen=True)
class Family:
    """What distinguishes a family of models.

    Attributes:
        lora_format: Class of its pipeline, the denoiser's name in it, and the layers that get adapters by default.
        networks: Class of each network by part of the pipeline.
        tokenizers: The tokenizer of each text encoder, both by part of the pipeline.
        states: The conditioning of one prompt, see `TextEncoders`; the settings are those of the model.
        call: One call of the denoiser: model, latents (B, C, H, W), times (B,) and conditioning to (B, C, H, W).
        published: Configurations of a published model, whose size is assumed for models that are not here.
        name: Its name.
        ids: Its hub ids.
        tiny_decoder: Hub id of the published tiny decoder for its latents.
        optional: Parts that a pipeline may lack.
        left_out: Parts that are never loaded.
    """

    lora_format: LoRAFormat
    networks: Mapping[str, str]
    tokenizers: Mapping[str, str]
    states: States
    call: Callable[["PipelineModel", Tensor, Tensor, Conditioning], Tensor]
    published: PipelineConfig
    name: str
    ids: tuple[str, ...]
    tiny_decoder: str
    optional: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of the pipeline that a model is made of."""
        return (*self.networks, *self.tokenizers.values())


class PipelineModel(nn.Module):
    """Implementation of `TextToImageModel` with the parts of a pipeline.

    Attributes:
        family: Facts and functions of the family.
        settings: Settings of the model's source.
        image_size: Height and width of an image in pixels.
        denoiser: The network that gets adapters.
        vae: `AutoencoderKL`.
        decoder: `AutoencoderTiny` that replaces the VAE in `decode` when gradients are enabled, or None.
        text: The text encoders.
    """

    def __init__(
        self,
        family: Family,
        parts: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        settings: Any,
        decoder: nn.Module | None = None,
        zeros_for_empty: bool = False,
        folder: Path | None = None,
    ) -> None:
        """Freeze the parts of a pipeline.

        Args:
            family: Facts and functions of the family.
            parts: Networks and tokenizers by part; those of `family.optional` may be None.
            scheduler: Configuration of the pipeline's scheduler, which defines the path.
            settings: The model's source, which has `height` and `width`, and what the family's functions read.
            decoder: `AutoencoderTiny` for the gradient path.
            zeros_for_empty: Give the empty prompt a conditioning of zeros.
            folder: Folder of encoded prompts, see `TextEncoders`.
        """
        super().__init__()
        self.family, self.settings = family, settings
        self.lora_format = replace(family.lora_format, call=settings.call, absent=settings.absent())
        self.denoiser: Any = parts[family.lora_format.part]
        self.vae: Any = parts["vae"]
        self.decoder: Any = decoder
        tokenizers = {name: parts[of] for name, of in family.tokenizers.items() if parts[name] is not None}
        encoders = {name: parts[name] for name in tokenizers}
        self.text = TextEncoders(encoders, tokenizers, family.states, settings, zeros_for_empty, folder)
        self.path = path_of(scheduler)
        self.latent_shape = latent_shape(self.denoiser, self.vae, settings.height, settings.width)
        self.image_size = image_size(self.latent_shape, self.vae)
        self.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """See `TextToImageModel`, as for all public members."""
        return torch.device(self.denoiser.device)

    def networks(self) -> dict[str, list[nn.Module]]:
        """Denoiser, text encoders that were not released, and the autoencoder with the tiny one if there is one."""
        decoders = [self.vae, *([] if self.decoder is None else [self.decoder])]
        encoders = [*self.text.encoders.values()]
        return {**({TEXT: encoders} if encoders else {}), DENOISER: [self.denoiser], DECODER: decoders}

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of B prompts, in the type of the denoiser."""
        return self.text.encode(prompts).to(self.device, self.denoiser.dtype)

    def encode_ahead(self, prompts: Sequence[str], device: torch.device | str) -> None:
        """Encode prompts and release the text encoders, if the model was given a folder for it."""
        self.text.encode_ahead(prompts, device)

    def too_long(self, prompts: Sequence[str]) -> int:
        """Number of prompts with more tokens than the longest context."""
        return self.text.too_long(prompts)

    def predict(
        self, latents: Tensor, time: Tensor, conditioning: Conditioning, guidance: Guidance | None = None
    ) -> Tensor:
        """The denoiser's output (B, C, H, W) float32."""
        return guided(self._call, self.denoiser, latents, time, conditioning, guidance)

    def _call(self, latents: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        return self.family.call(self, latents.to(self.denoiser.dtype), time, conditioning).float()

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [0, 1], computed in the decoder's own precision, outside autocast."""
        return decoded(latents, self.vae, self.decoder)

    def encode_images(self, images: Tensor) -> Tensor:
        """The mean of the VAE's distribution."""
        return encoded(images, self.vae)
