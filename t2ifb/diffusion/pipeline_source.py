"""Sources of models that are pipelines of `diffusers`: the settings that all families share, and loading."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from t2ifb.diffusion.pipeline_config import BlankTokenizer, PipelineConfig, network_of
from t2ifb.diffusion.pipeline_model import Family, PipelineModel
from t2ifb.diffusion.source import quiet, read_pipeline, read_tiny_decoder, read_vae
from t2ifb.utils.devices import device_of, dtype_of
from t2ifb.utils.files import data_folder

Precision = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class PipelineSource:
    """Description of a model in the format of a `diffusers` pipeline, before it is built (see `ModelSource`).

    A family's source adds `family`, `pipelines` and settings of its own.

    Attributes:
        family: Facts and functions of the family.
        source: Hub id, a folder in `diffusers`' format, or a single `.safetensors` file.
        variant: Variant of the files, such as `fp16`.
        config: For a single file: folder or hub id of a pipeline of the same kind, for its configuration.
        vae: Folder or hub id of an `AutoencoderKL` that replaces the pipeline's own.
        precision: Precision of the frozen weights. Adapters are always float32.
        decoder_precision: Precision of the decoder. fp16 overflows in some autoencoders.
        tiny_decoder: Folder or hub id of an `AutoencoderTiny` that decodes when gradients are needed.
        quantisation: `int8` stores the denoiser's frozen weights in 8 bits; needs torchao.
        gradient_checkpointing: Recompute denoiser and decoder in the backward pass instead of storing activations.
        height: Pixels of an image; by default the size that the denoiser was trained on.
        width: As `height`.
        encode_ahead: Encode all prompts of a run before it begins, keep them in `prompts/` of the data folder, and
            free the memory of the text encoders.
        device: Device for `load`; `auto` is the GPU if one exists.
    """

    family: ClassVar[Family]
    source: str
    variant: str | None = None
    config: str | None = None
    vae: str | None = None
    precision: Precision = "fp32"
    decoder_precision: Precision = "fp32"
    tiny_decoder: str | None = None
    quantisation: Literal["int8"] | None = None
    gradient_checkpointing: bool = False
    height: int | None = None
    width: int | None = None
    encode_ahead: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        for setting in ("precision", "decoder_precision"):
            dtype_of(getattr(self, setting), setting)
        if self.quantisation not in (None, "int8"):
            raise ValueError(f"quantisation must be int8 or None, not {self.quantisation!r}")

    def load(self) -> PipelineModel:
        """Build the model.

        Raises:
            ValueError: The weights are missing, cannot be downloaded, or are not such a pipeline.
        """
        pipeline = self.pipeline()
        tiny = None if self.tiny_decoder is None else read_tiny_decoder(self.tiny_decoder)
        parts = {name: getattr(pipeline, name) for name in self.family.parts}
        zeros = bool(pipeline.config.get("force_zeros_for_empty_prompt", False))
        return self._assembled(parts, pipeline.scheduler.config, tiny, zeros)

    def pipeline(self) -> Any:
        """The pipeline, with its VAE in `decoder_precision`. Plain `diffusers` needs both precisions to be equal.

        Raises:
            ValueError: As in `load`.
        """
        import diffusers

        # Types by part avoid rounding the VAE to the type of the denoiser first.
        dtypes = {"default": dtype_of(self.precision), "vae": dtype_of(self.decoder_precision)}
        options: dict[str, Any] = dict.fromkeys(self.absent())
        if self.vae is not None:
            options["vae"] = read_vae(self.vae, dtypes["vae"])
        if self.quantisation is not None:
            options["quantization_config"] = _int8(self.family.lora_format.part)
        kind = getattr(diffusers, self.family.lora_format.pipeline)
        return read_pipeline(kind, self.source, dtypes, self.variant, self.config, **options)

    def absent(self) -> tuple[str, ...]:
        """Parts of the pipeline that are not loaded."""
        return self.family.left_out

    @property
    def call(self) -> str:
        """Arguments of a call of the pipeline that differ from its defaults."""
        return ", ".join(f"{name}={value}" for name, value in self.call_arguments().items())

    def call_arguments(self) -> dict[str, Any]:
        """See `call`."""
        return {name: value for name in ("height", "width") if (value := getattr(self, name)) is not None}

    def on_meta(self) -> PipelineModel:
        """The model on the `meta` device, with tokenizers that return the same tokens for every text.

        Raises:
            ValueError: The path does not exist, or the folder has another format.
        """
        config = self._config()
        parts: dict[str, Any] = dict.fromkeys(self.family.parts)
        with torch.device("meta"):
            parts |= {name: config.network(name) for name in self.family.networks if name in config.parts}
            tiny = None if self.tiny_decoder is None else network_of(config.decoder)
        for network in parts.values():
            if network is not None:
                nn.Module.to(network, dtype_of(self.precision))  # the networks' own `to` warns of other types
        parts |= {name: BlankTokenizer(config.context) for name in self.family.tokenizers.values()}
        model = replace(self, device="meta")._assembled(parts, config.parts["scheduler"], tiny)
        if self.encode_ahead:
            model.text.assume_equal()
        return model

    def notes(self) -> tuple[str, ...]:
        """Assumptions of `on_meta`."""
        ahead = "the text encoders run before training and are not counted (encode_ahead)"
        int8 = f"quantisation=int8 is not counted: the denoiser's weights are counted in {self.precision}"
        own = [text for text, said in ((ahead, self.encode_ahead), (int8, self.quantisation is not None)) if said]
        return (*self._config().notes, *own)

    def fitting_tiny_decoder(self) -> str | None:
        """The family's published tiny decoder, if the model's latents have the scale of the published model."""
        scale = self.family.published.parts["vae"]["scaling_factor"]
        return self.family.tiny_decoder if self._config().parts["vae"].get("scaling_factor", scale) == scale else None

    def _config(self) -> PipelineConfig:
        """Configurations of the parts: the model's own where they are on this machine, else the published model's."""
        family, absent = self.family, self.absent()
        found = PipelineConfig.of(
            self.source, self.config, family.networks, family.published, family.name, family.ids, family.optional
        )
        kept = {name: part for name, part in found.parts.items() if name not in absent}
        return replace(found, parts=kept).with_tiny_decoder(self.tiny_decoder, family.tiny_decoder)

    def _assembled(
        self, parts: Mapping[str, Any], scheduler: Mapping[str, Any], tiny: Any, zeros_for_empty: bool = False
    ) -> PipelineModel:
        decoders, denoiser = [parts["vae"], *([] if tiny is None else [tiny])], parts[self.family.lora_format.part]
        with quiet():
            for network in decoders:
                network.to(dtype_of(self.decoder_precision))
        if self.gradient_checkpointing:
            for network in (denoiser, decoders[-1]):
                network.enable_gradient_checkpointing()
        denoiser.to(memory_format=torch.channels_last)
        folder = data_folder() / "prompts" if self.encode_ahead else None
        model = PipelineModel(self.family, parts, scheduler, self, tiny, zeros_for_empty, folder)
        return model.to(device_of(self.device))


def _int8(denoiser: str) -> Any:
    """Quantisation of a denoiser's weights to 8 bits by torchao.

    Raises:
        ValueError: torchao is not installed.
    """
    if find_spec("torchao") is None:
        raise ValueError("quantisation='int8' needs torchao; install it with pip install torchao")
    from diffusers import PipelineQuantizationConfig, TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig  # type: ignore[import-not-found]

    return PipelineQuantizationConfig(quant_mapping={denoiser: TorchAoConfig(Int8WeightOnlyConfig())})
