"""The networks of a latent diffusion model as one module: prompts to states, latents to noise, latents to images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from t2ifb.diffusion.lora import adapted_layers, merged, without_adapters
from t2ifb.utils.devices import computed_in, true_float32

Unconditional = Literal["grad", "detached"]
"""How the unconditional branch of classifier-free guidance is computed; see `DiffusionModel.predict`."""
REMEMBERED = 256
"""Prompts whose states are kept, the latest ones: those of a validation come again and again."""


class DiffusionModel(nn.Module):
    """A `StableDiffusionPipeline`'s parts, frozen and in evaluation mode; adapters may be put into its U-Net.

    Attributes:
        denoiser: The U-Net; predicts from latents, timestep and the prompt's states.
        vae: Decodes latents.
        scheduler_config: Of the pipeline's scheduler: its noise schedule.
        latent_shape: (C, H, W) of one sample.
    """

    def __init__(
        self,
        unet: nn.Module,
        vae: nn.Module,
        text_encoder: nn.Module,
        tokenizer: Callable[..., Any],
        scheduler_config: Mapping[str, Any],
        decoder: nn.Module | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            unet: `UNet2DConditionModel`.
            vae: `AutoencoderKL`.
            text_encoder: `CLIPTextModel`.
            tokenizer: `CLIPTokenizer`.
            scheduler_config: See the class.
            decoder: Decodes in the place of the VAE where a gradient is wanted, such as `AutoencoderTiny`.
        """
        super().__init__()
        self.denoiser: Any = unet
        self.vae: Any = vae
        self.text_encoder: Any = text_encoder
        self.decoder: Any = decoder
        self.tokenizer: Any = tokenizer
        self.scheduler_config = dict(scheduler_config)
        settings: Any = self.denoiser.config
        height, width = (settings.sample_size,) * 2 if isinstance(settings.sample_size, int) else settings.sample_size
        self.latent_shape: tuple[int, int, int] = (settings.in_channels, height, width)
        self._encode = lru_cache(REMEMBERED)(self._encode_one)
        self._adapted: list[Any] = []
        self.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Where the U-Net is."""
        return torch.device(self.denoiser.device)

    def encode_prompts(self, prompts: Sequence[str], guided: bool = False) -> Tensor:
        """States (B, L, D) of B prompts, as the U-Net takes them; what is longer than the context is cut off.

        A prompt is encoded alone and outside of autocast, so that its states are the same whoever asks first.

        Args:
            prompts: B strings.
            guided: Put the states of the empty prompt before them, (2 B, L, D), for classifier-free guidance.
        """
        texts = [*([""] * len(prompts) if guided else []), *prompts]
        return torch.cat([self._encode(text) for text in texts]).to(self.device, self.denoiser.dtype)

    @torch.no_grad()
    def _encode_one(self, prompt: str) -> Tensor:
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer([prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        device = self.text_encoder.device
        with torch.autocast(device.type, enabled=False):
            states: Tensor = self.text_encoder(tokens.input_ids.to(device)).last_hidden_state
        return states.cpu()

    def too_long(self, prompts: Sequence[str]) -> int:
        """How many of some prompts are longer than the context and will be cut."""
        ids = self.tokenizer(list(prompts), padding=False, truncation=False, verbose=False).input_ids
        return sum(len(each) > self.tokenizer.model_max_length for each in ids)

    def predict(
        self,
        latents: Tensor,
        timestep: float | Tensor,
        states: Tensor,
        guidance_scale: float = 1.0,
        unconditional: Unconditional = "grad",
    ) -> Tensor:
        """The U-Net's output, guided as w ε(x, z) + (1 - w) ε(x) (PAPER; arXiv 2207.12598).

        Args:
            latents: (B, C, H, W).
            timestep: Of the schedule that the model was trained with.
            states: (B, L, D) of the prompts, or (2 B, L, D) with those of the empty prompt first: then it is guided.
            guidance_scale: w.
            unconditional: `grad` computes ε(x, z) and ε(x) in one call on 2 B samples, both with gradient. `detached`
                computes ε(x) in a call of its own without gradient: the output's gradient is w times that of ε(x, z),
                and only B samples are kept for the backward pass. The two calls are made with and without gradient, so
                that outputs which are compared round alike.

        Returns:
            (B, C, H, W) float32.
        """
        if len(states) == len(latents):
            return self._call(latents, timestep, states)
        if unconditional == "detached":
            of_empty, of_prompts = states.chunk(2)
            with torch.no_grad():
                without = self._call(latents, timestep, of_empty)
            with_prompt = self._call(latents, timestep, of_prompts)
        else:
            without, with_prompt = self._call(torch.cat([latents, latents]), timestep, states).chunk(2)
        return guidance_scale * with_prompt + (1 - guidance_scale) * without

    def _call(self, latents: Tensor, timestep: float | Tensor, states: Tensor) -> Tensor:
        output: Tensor = self.denoiser(latents.to(self.denoiser.dtype), timestep, states).sample.float()
        return output

    @contextmanager
    def weights_in_fp32(self) -> Iterator[None]:
        """The same U-Net computing in fp32, not in TF32: weights in half precision are fp32 while this lasts."""
        rounded = [(weight, weight.dtype) for weight in self.denoiser.parameters() if weight.dtype != torch.float32]
        try:
            for weight, _ in rounded:
                weight.data = weight.data.float()
            with true_float32():
                yield
        finally:
            for weight, dtype in rounded:
                weight.data = weight.data.to(dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1] of latents (B, C, h, w); gradients reach the latents.

        Runs in the decoder's own precision, outside of autocast.
        """
        decoder = self.decoder if self.decoder is not None and torch.is_grad_enabled() else self.vae
        settings = decoder.config
        scaled = latents / settings.scaling_factor + (getattr(settings, "shift_factor", None) or 0)
        with torch.autocast(latents.device.type, enabled=False):
            images = computed_in(decoder.dtype, lambda each: decoder.decode(each).sample, scaled)
        return (images / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Latents (B, C, h, w) float32 of images (B, 3, H, W) in [0, 1]: the mean of the VAE's distribution."""
        settings = self.vae.config
        with torch.autocast(images.device.type, enabled=False):
            latents: Tensor = self.vae.encode((2 * images - 1).to(self.vae.dtype)).latent_dist.mode().float()
        return (latents - (getattr(settings, "shift_factor", None) or 0)) * settings.scaling_factor

    @contextmanager
    def base(self) -> Iterator[None]:
        """The same U-Net with its adapters off; nothing may be back-propagated within. May be entered within itself."""
        with without_adapters(self._adapted_layers()):
            yield

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """Faster calls with adapters for steps that no gradient and no probability ratio is taken of.

        In fp32 the adapters are merged into the weights. Half-precision weights would round them away: there the U-Net
        runs outside of autocast, which casts activations back and forth.
        """
        if self.denoiser.dtype == torch.float32:
            with merged(self._adapted_layers()):
                yield
        else:
            with torch.autocast(self.device.type, enabled=False):
                yield

    def _adapted_layers(self) -> list[Any]:
        """Found once: walking through all modules takes milliseconds."""
        if not self._adapted and getattr(self.denoiser, "_hf_peft_config_loaded", False):
            self._adapted = adapted_layers(self.denoiser)
        return self._adapted
