"""Other forms of exported adapters: the names that ComfyUI and AUTOMATIC1111 read, and merged pipelines."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor, nn

from t2ifb.utils.devices import dtype_of
from t2ifb.utils.files import make_folder

if TYPE_CHECKING:
    from t2ifb.diffusion.pipeline_source import PipelineSource

COMFYUI_WEIGHTS = "lora_comfyui.safetensors"


def comfyui_weights(
    layers: Mapping[str, Tensor], part: str, rank: int, lora_alpha: float, kohya: bool
) -> dict[str, Tensor]:
    """Adapters under the names that ComfyUI maps to a model's layers (its file `comfy/lora.py`).

    ComfyUI and AUTOMATIC1111 read no metadata. The scale of an adapter is `.alpha` / rank, or 1 without `.alpha`.

    - kohya's names: `lora_<part>_<layer>.lora_down.weight`, `.lora_up.weight` and `.alpha`.
    - Others: `<part>.<layer>.lora_A.weight` and `.lora_B.weight`, with lora_alpha / rank multiplied into B. `.alpha` is
      left out, because diffusers refuses it.

    Args:
        layers: Weights by name as of `adapter_state`.
        part: The denoiser's name in the pipeline.
        rank: Rank of the adapters.
        lora_alpha: Their scale parameter.
        kohya: Use kohya's names.
    """
    named = {f"{part}.{name}": weight for name, weight in layers.items()}
    if not kohya:
        scale = lora_alpha / rank
        return {name: weight * scale if ".lora_B." in name else weight for name, weight in named.items()}
    from diffusers.utils import convert_state_dict_to_kohya

    converted: dict[str, Tensor] = convert_state_dict_to_kohya(named)
    alpha = torch.tensor(float(lora_alpha))  # diffusers writes the rank
    return {name: alpha.clone() if name.endswith(".alpha") else weight for name, weight in converted.items()}


def save_merged(source: "PipelineSource", adapters: Path, folder: str | Path) -> None:
    """Write a pipeline in diffusers' format whose denoiser has adapters merged into its weights.

    The weights are added in float32 and then rounded to the precisions of the source.

    Args:
        source: The base model.
        adapters: The exported file, see `exported_file`.
        folder: Folder of the new pipeline.

    Raises:
        ValueError: The base model or the adapters cannot be loaded, or the folder is not empty.
    """
    target = Path(folder).expanduser()
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{folder} is not empty; give another folder for the merged pipeline")
    part = source.family.lora_format.part
    with safe_open(adapters, "pt") as file:
        own = (f"{part}.", f"lora_{part}_")  # names of diffusers and of kohya
        if not any(name.startswith(own) for name in file.keys()):  # noqa: SIM118
            raise ValueError(f"{adapters} belongs to another family of models: expected names that begin with {part}")
    pipeline = replace(source, precision="fp32", decoder_precision="fp32", quantisation=None).pipeline()
    try:
        pipeline.load_lora_weights(str(adapters.parent), weight_name=adapters.name)
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        raise ValueError(f"{adapters} belongs to another base model: its layers have other sizes") from error
    pipeline.fuse_lora(components=[part])
    pipeline.unload_lora_weights()
    for name, network in pipeline.components.items():
        if isinstance(network, nn.Module):
            network.to(dtype_of(source.decoder_precision if name == "vae" else source.precision))
    pipeline.save_pretrained(str(make_folder(target)), safe_serialization=True)
