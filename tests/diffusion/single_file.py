"""A pipeline in the layout of one file, as Stable Diffusion was first published: other names for the same weights."""

import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
VAE_MIDDLE = {"resnets.0": "block_1", "attentions.0": "attn_1", "resnets.1": "block_2"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write_single_file(pipeline: Any, path: Path) -> Path:
    """Write U-Net, autoencoder and text encoder of a `StableDiffusionPipeline` with blocks as v1.5 has them."""
    layers = pipeline.unet.config.layers_per_block
    levels = len(pipeline.vae.config.block_out_channels)
    found = {f"model.diffusion_model.{_of_unet(name, layers)}": w for name, w in pipeline.unet.state_dict().items()}
    found |= {f"first_stage_model.{_of_vae(name, levels)}": w for name, w in _convolved(pipeline.vae).items()}
    text = pipeline.text_encoder.state_dict().items()
    prefix = "cond_stage_model.transformer."
    found |= {prefix + ("" if name.startswith("text_model.") else "text_model.") + name: w for name, w in text}
    save_file({name: weight.contiguous() for name, weight in found.items()}, path)
    return path


def _of_unet(name: str, layers: int) -> str:
    """The name in the one file; a level of it counts resnets and what changes the size in one row."""
    for end, other in UNET_ENDS.items():
        if name.startswith(end + "."):
            return other + name.removeprefix(end)
    if found := re.fullmatch(r"mid_block\.(\w+\.\d)\.(.*)", name):
        return f"middle_block.{MIDDLE[found[1]]}.{_of_resnet(found[2])}"
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
        down = found[1] == "down"
        row = int(found[2]) * (layers + 1) + int(found[4]) + down
        place = 0 if found[3] == "resnets" else 1
        return f"{'input' if down else 'output'}_blocks.{row}.{place}.{_of_resnet(found[5])}"
    if found := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(\w+)", name):
        return f"input_blocks.{(int(found[1]) + 1) * (layers + 1)}.0.op.{found[2]}"
    found = re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(\w+)", name)
    assert found is not None, name
    return f"output_blocks.{int(found[1]) * (layers + 1) + layers}.2.conv.{found[2]}"


def _of_resnet(name: str) -> str:
    head, _, rest = name.partition(".")
    return f"{RESNET.get(head, head)}.{rest}"


def _of_vae(name: str, levels: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if found := re.fullmatch(r"(\w+)\.mid_block\.(\w+\.\d)\.(.*)", name):
        inner = found[3]
        for own, other in VAE_ATTENTION.items():
            inner = re.sub(rf"^{re.escape(own)}\.", f"{other}.", inner)
        return f"{found[1]}.mid.{VAE_MIDDLE[found[2]]}.{inner}"
    if found := re.fullmatch(r"(\w+)\.(down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.*)", name):
        level = int(found[3]) if found[2] == "down" else levels - 1 - int(found[3])
        inner = f"block.{found[5]}" if found[4] == "resnets" else f"{found[2]}sample"
        return f"{found[1]}.{found[2]}.{level}.{inner}.{found[6]}"
    return name


def _convolved(vae: Any) -> dict[str, Tensor]:
    """The autoencoder's weights; its attention was once made of convolutions of one pixel."""
    return {
        name: weight[..., None, None] if re.search(r"attentions.*to_\w+(\.0)?\.weight$", name) else weight
        for name, weight in vae.state_dict().items()
    }
