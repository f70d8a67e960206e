"""The sizes of a diffusion model's networks: from configuration files, or as Stable Diffusion v1.5 was published."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from t2ifb.data.files import read_text
from t2ifb.diffusion.source import DiffusionSource

SD15_IDS = ("stable-diffusion-v1-5/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5")
TAESD_ID = "madebyollin/taesd"
CONTEXT = 77
"""Tokens of a prompt, where no tokenizer's configuration says."""
FILES = {
    "unet": ("unet/config.json", "UNet2DConditionModel"),
    "vae": ("vae/config.json", "AutoencoderKL"),
    "text_encoder": ("text_encoder/config.json", "CLIPTextModel"),
    "scheduler": ("scheduler/scheduler_config.json", None),
}
"""Of each part: its file, and the only class that it may be of."""


@dataclass(frozen=True)
class Geometry:
    """What the configuration files of a pipeline in `StableDiffusionPipeline`'s form say.

    Attributes:
        unet: Of `UNet2DConditionModel`.
        vae: Of `AutoencoderKL`.
        text_encoder: Of `CLIPTextModel`.
        scheduler: Of any scheduler of `diffusers`, with its `_class_name`.
        decoder: Of an `AutoencoderTiny`; its defaults are those of TAESD.
        context: Tokens of a prompt.
        notes: What is assumed, for whoever reads the figures.
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
        """From a folder in `diffusers`' form; weights need not be there.

        Raises:
            ValueError: A configuration is missing, cannot be read or is of another kind of network.
        """
        parts: dict[str, Any] = {}
        for name, (file, kind) in FILES.items():
            parts[name] = _read(folder / file)
            found = parts[name].get("_class_name") or (parts[name].get("architectures") or [kind])[0]
            if kind is not None and found != kind:
                raise ValueError(f"{folder / file} is of a {found}; only pipelines with a {kind} are tuned")
        tokenizer = folder / "tokenizer" / "tokenizer_config.json"
        length = _read(tokenizer).get("model_max_length", CONTEXT) if tokenizer.is_file() else CONTEXT
        return cls(
            **parts, context=min(int(length), int(parts["text_encoder"].get("max_position_embeddings", CONTEXT)))
        )

    def unet_network(self) -> Any:
        """The U-Net with random weights, as the three below on the default device and in the default type."""
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel.from_config(self.unet)

    def vae_network(self) -> Any:
        """The autoencoder."""
        from diffusers import AutoencoderKL

        return AutoencoderKL.from_config(self.vae)

    def text_network(self) -> Any:
        """The text encoder."""
        from transformers import CLIPTextConfig, CLIPTextModel

        return CLIPTextModel(CLIPTextConfig.from_dict(self.text_encoder))

    def tiny_network(self) -> Any:
        """The small decoder."""
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
"""Stable Diffusion v1.5 as it was published: 512 x 512 images, 859.52 M parameters in the U-Net.

What changes neither size nor schedule is left out where it is the default of the network's class.
"""


def geometry_of(source: DiffusionSource) -> Geometry:
    """The sizes of a model without its weights; nothing is downloaded.

    A folder's own configuration is read, and so is that of a hub id that is on this machine already. Anything else is
    taken to be as large as Stable Diffusion v1.5, with a note unless it is that.

    Raises:
        ValueError: A path that does not exist, or a folder of another kind.
    """
    path = Path(source.source).expanduser()
    config = Path(source.config).expanduser() if path.is_file() and source.config else path
    folder = config if config.is_dir() else _cached(str(config), FILES["unet"][0], 2)
    if folder is not None:
        geometry = Geometry.read(folder)
    elif path.is_file():
        note = f"{path.name} is taken to be as large as Stable Diffusion v1.5; diffusion.config=<folder> says otherwise"
        geometry = replace(SD15, notes=(note,))
    elif source.source.count("/") != 1 or source.source.startswith((".", "~", "/")):
        raise ValueError(f"there is no {source.source}; diffusion.source is a hub id, a folder or a .safetensors file")
    else:
        note = f"{source.source} is not on this machine and taken to be as large as Stable Diffusion v1.5"
        geometry = replace(SD15, notes=() if source.source in SD15_IDS else (note,))
    return geometry if source.tiny_decoder is None else _with_tiny(geometry, source.tiny_decoder)


def _with_tiny(geometry: Geometry, tiny: str) -> Geometry:
    folder = Path(tiny).expanduser()
    found = folder if folder.is_dir() else _cached(tiny, "config.json", 1)
    if found is not None:
        return replace(geometry, decoder=_read(found / "config.json"))
    note = () if tiny == TAESD_ID else (f"tiny_decoder={tiny} is taken to be as large as {TAESD_ID}",)
    return replace(geometry, notes=geometry.notes + note)


def _cached(hub_id: str, file: str, depth: int) -> Path | None:
    """The folder of a hub id that was downloaded before, if its file, `depth` names deep, is there."""
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
        raise ValueError(f"cannot read {path}: {error}; expected a pipeline in diffusers' form") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no configuration: it holds a {type(content).__name__}")
    return content
