"""The interface of text-to-image models; `t2ifb.diffusion.models` has one file per family."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from t2ifb.diffusion.lora import LoRAFormat, without_adapters
from t2ifb.diffusion.path import GaussianPath

Unconditional = Literal["grad", "detached", "reference"]
"""How the unconditional branch of classifier-free guidance is computed; see `Guidance`."""
TEXT, DENOISER, DECODER = "text encoder", "denoiser", "decoder"
"""Names of a model's parts in reports."""


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser needs to know of B prompts.

    Attributes:
        tensors: Tensors (B, ...) by name, such as `states` (B, L, D) and `pooled` (B, P). The family chooses the names.
    """

    tensors: dict[str, Tensor]

    def __post_init__(self) -> None:
        if len({len(each) for each in self.tensors.values()}) != 1:
            shapes = {name: tuple(each.shape) for name, each in self.tensors.items()}
            raise ValueError(f"expected tensors with one row per prompt, got {shapes}")

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, name: str) -> Tensor:
        """A tensor by its name."""
        return self.tensors[name]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(each.nbytes for each in self.tensors.values())

    def rows(self, index: slice | Sequence[int]) -> Self:
        """The conditioning of some of the prompts, by their numbers."""
        return type(self)({name: each[index] for name, each in self.tensors.items()})

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """The same on a device and, if given, in a floating-point type."""
        return type(self)({name: each.to(device, dtype or each.dtype) for name, each in self.tensors.items()})

    @classmethod
    def cat(cls, parts: Sequence["Conditioning"]) -> Self:
        """The rows of several conditionings of one family, one after the other."""
        return cls({name: torch.cat([part[name] for part in parts]) for name in parts[0].tensors})


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (arXiv 2207.12598): w ε(x, z) + (1 - w) ε(x), for any network output.

    Attributes:
        unconditional: Conditioning of the empty prompt, one row per sample.
        scale: w.
        rule: How ε(x) is computed. `grad` computes both branches in one call on 2 B samples, with gradient. `detached`
            computes ε(x) in a separate call without gradient: the gradient of the output is w times that of ε(x, z),
            and only B samples are kept for the backward pass. The calls are separate with and without gradient, so
            that outputs that are compared have the same rounding errors. `reference` is `detached` with the adapters
            off.
    """

    unconditional: Conditioning
    scale: float
    rule: Unconditional = "grad"


class TextToImageModel(Protocol):
    """A latent text-to-image model, frozen and in evaluation mode. Adapters can be added to its denoiser.

    A family is also an `nn.Module`, which the training module moves and saves as a part of itself.

    Attributes:
        denoiser: The network that gets adapters.
        path: The Gaussian path that the model was trained on.
        latent_shape: (C, H, W) of one sample.
        lora_format: Layers that get adapters by default, and the format of exported adapters.
    """

    denoiser: Any
    path: GaussianPath
    latent_shape: tuple[int, int, int]
    lora_format: LoRAFormat

    @property
    def device(self) -> torch.device:
        """Device of the denoiser."""
        ...

    def networks(self) -> Mapping[str, list[nn.Module]]:
        """All networks by part: `TEXT`, `DENOISER` and `DECODER`."""
        ...

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of B prompts on the model's device; that of the empty prompt serves as unconditional.

        A prompt's conditioning is computed once and kept on the CPU. It does not depend on the other prompts.
        """
        ...

    def encode_ahead(self, prompts: Sequence[str], device: torch.device | str) -> None:
        """Encode all prompts of a run on a device, if the source says so; the text encoders then leave memory.

        After that other prompts raise a `ValueError`.
        """
        ...

    def too_long(self, prompts: Sequence[str]) -> int:
        """Number of prompts that are longer than the context and will be cut."""
        ...

    def predict(
        self, latents: Tensor, time: Tensor, conditioning: Conditioning, guidance: Guidance | None = None
    ) -> Tensor:
        """The denoiser's output.

        Args:
            latents: (B, C, H, W).
            time: (B,), training times of the path.
            conditioning: Conditioning of B prompts.
            guidance: Classifier-free guidance; None for the conditional branch alone.

        Returns:
            (B, C, H, W) float32; `path.prediction` says what is predicted.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1] of latents (B, C, h, w); gradients reach the latents."""
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents (B, C, h, w) float32 of images (B, 3, H, W) in [0, 1], without gradient."""
        ...

    def to(self, device: Any) -> Self:
        """Move all networks to a device."""
        ...


class ModelSource(Protocol):
    """Description of a model before it is built: a dataclass with a file and settings.

    Attributes:
        pipelines: Classes of diffusers' pipelines that the family reads, as `model_index.json` names them.
    """

    pipelines: ClassVar[tuple[str, ...]]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def source(self) -> str:
        """Hub id, folder in diffusers' format, or single `.safetensors` file."""
        ...

    @property
    def precision(self) -> str:
        """Precision of the frozen weights: fp32, fp16 or bf16."""
        ...

    @property
    def decoder_precision(self) -> str:
        """Precision of the decoder."""
        ...

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether denoiser and decoder are recomputed in the backward pass."""
        ...

    @property
    def device(self) -> str:
        """Device for `load`."""
        ...

    def load(self) -> Any:
        """Build the `TextToImageModel`. Raise a `ValueError` if it cannot be read."""
        ...

    def on_meta(self) -> Any:
        """The `TextToImageModel` on the `meta` device: shapes and types, no weights. Nothing is downloaded."""
        ...

    def notes(self) -> Sequence[str]:
        """Assumptions of `on_meta`, for reports."""
        ...

    def fitting_tiny_decoder(self) -> str | None:
        """Hub id of a published tiny decoder for this model's latents, if known."""
        ...


def load_for_sampling(source: ModelSource, prompts: Iterable[str], device: torch.device | str) -> Any:
    """Load a `TextToImageModel` to sample from prompts on a device.

    With a source that encodes ahead, the text encoders leave memory before the other networks enter the device.
    """
    model = replace(source, device="cpu").load()
    model.encode_ahead(list(prompts), device)
    return model.to(device)


Call = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""One call of the denoiser: latents (B, C, H, W), times (B,), conditioning to the output (B, C, H, W)."""


def guided(
    call: Call,
    denoiser: nn.Module,
    latents: Tensor,
    time: Tensor,
    conditioning: Conditioning,
    guidance: Guidance | None,
) -> Tensor:
    """`TextToImageModel.predict` in terms of single calls of the denoiser."""
    if guidance is None:
        return call(latents, time, conditioning)
    if guidance.rule == "grad":
        both = Conditioning.cat([guidance.unconditional, conditioning])
        without, with_prompt = call(torch.cat([latents, latents]), time.repeat(2), both).chunk(2)
    else:
        adapters = without_adapters(denoiser) if guidance.rule == "reference" else nullcontext()
        with torch.no_grad(), adapters:
            without = call(latents, time, guidance.unconditional)
        with_prompt = call(latents, time, conditioning)
    return guidance.scale * with_prompt + (1 - guidance.scale) * without
