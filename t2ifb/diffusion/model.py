"""The networks of a latent diffusion model as one module: prompts to states, latents to noise, latents to images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


class DiffusionModel(nn.Module):
    """A `StableDiffusionPipeline`'s parts, frozen and in evaluation mode; adapters may be put into its U-Net.

    Attributes:
        unet: Predicts from latents, timestep and the prompt's states.
        vae: Decodes latents.
        scheduler_config: Of the pipeline's scheduler: its noise schedule.
        latent_shape: (C, H, W) of one sample.
        too_long: Different prompts that were longer than the text encoder's context so far, and were cut.
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
        self.unet: Any = unet
        self.vae: Any = vae
        self.text_encoder: Any = text_encoder
        self.decoder: Any = decoder
        self.tokenizer: Any = tokenizer
        self.scheduler_config = dict(scheduler_config)
        settings: Any = self.unet.config
        height, width = (settings.sample_size,) * 2 if isinstance(settings.sample_size, int) else settings.sample_size
        self.latent_shape: tuple[int, int, int] = (settings.in_channels, height, width)
        self.too_long: set[str] = set()
        self._states: dict[str, Tensor] = {}
        self._is_base = False
        self.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Where the U-Net is."""
        return torch.device(self.unet.device)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode but for the U-Net, whose gradient checkpointing depends on the mode."""
        super().train(False)
        self.unet.train(mode)
        return self

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """States (B, L, D) of B prompts, each encoded once ever; what is longer than the context is cut off."""
        fresh = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._states]
        if fresh:
            length = self.tokenizer.model_max_length
            tokens = self.tokenizer(
                fresh, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            )
            whole = self.tokenizer(fresh, padding=False, truncation=False, verbose=False)
            self.too_long |= {p for p, ids in zip(fresh, whole.input_ids, strict=True) if len(ids) > length}
            device = self.text_encoder.device
            states = self.text_encoder(tokens.input_ids.to(device)).last_hidden_state
            self._states |= zip(fresh, states.cpu(), strict=True)
        return torch.stack([self._states[prompt] for prompt in prompts]).to(self.device)

    def predict(
        self, latents: Tensor, timestep: int | Tensor, prompts: Sequence[str], guidance_scale: float = 1.0
    ) -> Tensor:
        """The U-Net's output, guided as w ε(x, z) + (1 - w) ε(x) (PAPER; arXiv 2207.12598) in one call.

        Args:
            latents: (B, C, H, W).
            timestep: Of the schedule that the model was trained with.
            prompts: B strings.
            guidance_scale: w; with 1 the unconditional half is not computed.

        Returns:
            (B, C, H, W) float32.
        """
        states = self.encode_prompts(prompts)
        guided = guidance_scale != 1.0
        if guided:
            states = torch.cat([self.encode_prompts([""] * len(prompts)), states])
            latents = torch.cat([latents, latents])
        dtype = self.unet.dtype
        with fast_attention(self.device):
            output: Tensor = self.unet(latents.to(dtype), timestep, states.to(dtype)).sample.float()
        if not guided:
            return output
        without, with_prompt = output.chunk(2)
        return guidance_scale * with_prompt + (1 - guidance_scale) * without

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1] of latents (B, C, h, w); gradients reach the latents.

        Runs in the decoder's own precision, outside of autocast.
        """
        decoder = self.decoder if self.decoder is not None and torch.is_grad_enabled() else self.vae
        settings = decoder.config
        scaled = latents / settings.scaling_factor + (getattr(settings, "shift_factor", None) or 0)
        with torch.autocast(latents.device.type, enabled=False), fast_attention(latents.device):
            images: Tensor = decoder.decode(scaled.to(decoder.dtype)).sample.float()
        return (images / 2 + 0.5).clamp(0, 1)

    @contextmanager
    def base(self) -> Iterator[None]:
        """The same U-Net with its adapters off; nothing may be back-propagated within. May be entered within itself."""
        if self._is_base or not getattr(self.unet, "_hf_peft_config_loaded", False):
            yield
            return
        self.unet.disable_adapters()
        self._is_base = True
        try:
            yield
        finally:
            self._is_base = False
            self.unet.enable_adapters()


def fast_attention(device: torch.device) -> Any:
    """On a CPU the plain attention: flash attention's backward pass takes twice as long there."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
