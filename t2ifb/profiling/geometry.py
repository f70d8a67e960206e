"""Sizes of a diffusion model's networks, from configuration files or as published for Stable Diffusion v1.5."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from t2ifb.diffusion.source import DiffusionSource
from t2ifb.utils.files import read_text

SD15_IDS = ("stable-diffusion-v1-5/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5")
TAESD_ID = "madebyollin/taesd"
CONTEXT = 77
"""Default number of tokens per prompt, without a tokenizer configuration."""
FILES = {
    "unet": ("unet/config.json", "UNet2DConditionModel"),
    "vae": ("vae/config.json", "AutoencoderKL"),
    "text_encoder": ("text_encoder/config.json", "CLIPTextModel"),
    "scheduler": ("scheduler/scheduler_config.json", None),
}
"""Configuration file and required class of each part."""


@dataclass(frozen=True)
class Geometry:
    """Configurations of a pipeline in `StableDiffusionPipeline`'s format.

    Attributes:
        unet: Configuration of the `UNet2DConditionModel`.
        vae: Configuration of the `AutoencoderKL`.
        text_encoder: Configuration of the `CLIPTextModel`.
        scheduler: Configuration of any `diffusers` scheduler, with its `_class_name`.
        decoder: Configuration of an `AutoencoderTiny`; the class defaults are those of TAESD.
        context: Tokens per prompt.
        notes: Assumptions, for the report.
    """

    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoder: dict[str, Any]
    scheduler: dict[str, Any]
    decoder: dict[str, Any] = field(default_factory=dict)
    context: int = CONTEXT
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a folder in `diffusers`' format. Weights are not needed.

        Raises:
            ValueError: A configuration is missing, unreadable or of another network class.
        """
        parts: dict[str, Any] = {}
        for name, (file, kind) in FILES.items():
            parts[name] = _read(folder / file)
            found = parts[name].get("_class_name") or (parts[name].get("architectures") or [kind])[0]
            if kind is not None and found != kind:
                raise ValueError(f"{folder / file} configures a {found}; only pipelines with a {kind} are supported")
        tokenizer = folder / "tokenizer" / "tokenizer_config.json"
        length = _read(tokenizer).get("model_max_length", CONTEXT) if tokenizer.is_file() else CONTEXT
        return cls(
            **parts, context=min(int(length), int(parts["text_encoder"].get("max_position_embeddings", CONTEXT)))
        )

    def unet_network(self) -> Any:
        """U-Net with random weights on the default device and in the default type, like the three networks below."""
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel.from_config(self.unet)

    def vae_network(self) -> Any:
        """Autoencoder."""
        from diffusers import AutoencoderKL

        return AutoencoderKL.from_config(self.vae)

    def text_network(self) -> Any:
        """Text encoder."""
        from transformers import CLIPTextConfig, CLIPTextModel

        return CLIPTextModel(CLIPTextConfig.from_dict(self.text_encoder))

    def tiny_network(self) -> Any:
        """Tiny decoder."""
        from diffusers import AutoencoderTiny

        return AutoencoderTiny.from_config(self.decoder)


SD15 = Geometry(
    unet={
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
    vae={
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
    text_encoder={
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "max_position_embeddings": CONTEXT,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
        "vocab_size": 49408,
    },
    scheduler={
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
)
"""Stable Diffusion v1.5 as published: 512 x 512 images, 859.52 M parameters in the U-Net.

Class defaults that affect neither size nor schedule are omitted.
"""


def geometry_of(source: DiffusionSource) -> Geometry:
    """Sizes of a model, without its weights. Nothing is downloaded.

    The configuration of a local folder or of a cached hub id is read. Any other model is assumed to be as large as
    Stable Diffusion v1.5, with a note unless it is that model.

    Raises:
        ValueError: The path does not exist, or the folder has another format.
    """
    path = Path(source.source).expanduser()
    config = Path(source.config).expanduser() if path.is_file() and source.config else path
    folder = config if config.is_dir() else _cached(str(config), FILES["unet"][0], 2)
    if folder is not None:
        geometry = Geometry.read(folder)
    elif path.is_file():
        note = (
            f"{path.name} is assumed to be as large as Stable Diffusion v1.5; otherwise set diffusion.config=<folder>"
        )
        geometry = replace(SD15, notes=(note,))
    elif source.source.count("/") != 1 or source.source.startswith((".", "~", "/")):
        raise ValueError(
            f"{source.source} does not exist; diffusion.source is a hub id, a folder or a .safetensors file"
        )
    else:
        note = f"{source.source} is not on this machine and is assumed to be as large as Stable Diffusion v1.5"
        geometry = replace(SD15, notes=() if source.source in SD15_IDS else (note,))
    return geometry if source.tiny_decoder is None else _with_tiny(geometry, source.tiny_decoder)


def _with_tiny(geometry: Geometry, tiny: str) -> Geometry:
    folder = Path(tiny).expanduser()
    found = folder if folder.is_dir() else _cached(tiny, "config.json", 1)
    if found is not None:
        return replace(geometry, decoder=_read(found / "config.json"))
    note = () if tiny == TAESD_ID else (f"tiny_decoder={tiny} is assumed to be as large as {TAESD_ID}",)
    return replace(geometry, notes=geometry.notes + note)


def _cached(hub_id: str, file: str, depth: int) -> Path | None:
    """Local folder of a downloaded hub id if its file, `depth` levels deep, exists."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(hub_id, file)
    except HFValidationError:
        return None
    return Path(found).parents[depth - 1] if isinstance(found, str) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}; expected a pipeline in diffusers' format") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a configuration: it contains a {type(content).__name__}")
    return content
