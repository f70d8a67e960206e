"""Source of a diffusion model: a hub id, a folder or a single file, with precisions."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from t2ifb.diffusion.model import DiffusionModel
from t2ifb.utils.devices import device_of, dtype_of
from t2ifb.utils.overrides import typed


@dataclass(frozen=True)
class DiffusionSource:
    """Description of a latent diffusion model in `StableDiffusionPipeline`'s format, before it is built.

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

    def load(self) -> DiffusionModel:
        """Build the model, without the safety checker.

        Raises:
            ValueError: The weights are missing, cannot be downloaded, or are not such a pipeline.
        """
        pipeline = self.pipeline()
        parts = {name: getattr(pipeline, name) for name in ("unet", "vae", "text_encoder", "tokenizer")}
        decoder = self._tiny()
        with _quiet():
            for network in (parts["vae"], decoder):
                if network is not None:
                    network.to(dtype_of(self.decoder_precision))
        if self.gradient_checkpointing:
            for network in (parts["unet"], parts["vae"] if decoder is None else decoder):
                network.enable_gradient_checkpointing()
        model = DiffusionModel(**parts, scheduler_config=pipeline.scheduler.config, decoder=decoder)
        model.denoiser.to(memory_format=torch.channels_last)
        return model.to(device_of(self.device))

    def pipeline(self) -> Any:
        """The pipeline, with its VAE in `decoder_precision`. Plain `diffusers` needs both precisions to be equal.

        Raises:
            ValueError: As in `load`.
        """
        from diffusers import StableDiffusionPipeline

        self._check_files()
        dtype, of_vae = dtype_of(self.precision), dtype_of(self.decoder_precision)
        options: dict[str, Any] = {"safety_checker": None}
        path = Path(self.source).expanduser()
        try:
            with _quiet():  # the model card mentions the disabled safety checker
                if path.is_file():
                    if self.config is not None:
                        options["config"] = self.config
                    loaded = StableDiffusionPipeline.from_single_file(
                        str(path), dtype=dtype if dtype == of_vae else torch.float32, **options
                    )
                    for network in (loaded.unet, loaded.text_encoder):
                        network.to(dtype)
                    loaded.vae.to(of_vae)
                else:
                    extra = {"requires_safety_checker": False, "variant": self.variant, "use_safetensors": True}
                    where = str(path) if path.is_dir() else self.source
                    dtypes = {"default": dtype, "vae": of_vae}  # avoids rounding to the U-Net's type first
                    loaded = StableDiffusionPipeline.from_pretrained(where, dtype=dtypes, **options, **extra)
        except Exception as error:  # the hub, diffusers, transformers and safetensors raise various types
            raise ValueError(self._failure(error)) from error
        loaded.set_progress_bar_config(disable=True)
        return loaded

    def _check_files(self) -> None:
        """Check that a file or folder can be a model. Weights are not read.

        Raises:
            ValueError: The file or folder is not a model.
        """
        path = Path(self.source).expanduser()
        if path.is_file() and path.suffix.lower() != ".safetensors":
            raise ValueError(
                f"{path}: only .safetensors files are read, because other formats can run code when they are loaded. "
                "Get the model as .safetensors, or convert it to a folder in diffusers' format"
            )
        if path.is_file():
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(path, "pt"):
                    pass
            except SafetensorError as error:
                raise ValueError(f"{path} is not a complete .safetensors file ({error}): download it again") from error
        elif path.is_dir() and not (path / "model_index.json").is_file():
            hint = "expected a folder in diffusers' format"
            if files := sorted(path.glob("*.safetensors")):
                file = typed("diffusion.source", files[0])
                hint = f"for a single file in it set {file} diffusion.config=<folder of a pipeline of its kind>"
            raise ValueError(f"{path} has no model_index.json; {hint}")

    def _tiny(self) -> Any:
        if self.tiny_decoder is None:
            return None
        from diffusers import AutoencoderTiny

        try:
            return AutoencoderTiny.from_pretrained(self.tiny_decoder)
        except Exception as error:
            raise ValueError(f"cannot load tiny_decoder={self.tiny_decoder}: {_first_line(error)}") from error

    def _failure(self, error: Exception) -> str:
        """Message for weights that cannot be loaded."""
        path = Path(self.source).expanduser()
        if path.exists():
            hint = (
                ""
                if path.is_dir() or self.config
                else " A single file also needs config=<folder of a pipeline of its kind>."
            )
            return f"cannot load {self.source} as a Stable Diffusion pipeline: {_first_line(error)}.{hint}"
        return (
            f"the diffusion model {self.source} is not on this machine and cannot be downloaded "
            f"({type(error).__name__}). Download it where a network is available: hf download {self.source}; then "
            "set diffusion.source=<folder>, also for a copied folder"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress progress bars and messages of the libraries that load weights."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300].rstrip(".") if lines else type(error).__name__
