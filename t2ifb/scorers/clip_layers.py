"""Layers of `open_clip` models that a reward run may tune."""

from torch import nn

IMAGE_BLOCKS = ("visual.transformer.resblocks", "visual.layer1", "visual.layer2", "visual.layer3", "visual.layer4")
"""Sequences of image layers, in order: the first for vision transformers, the others for ResNets."""
IMAGE_END = ("visual.attn_pool", "visual.attn_pool_contrastive", "visual.ln_post", "visual.proj", "visual.attnpool")
TEXT_BLOCKS = ("transformer.resblocks", "text.transformer.resblocks")
TEXT_END = ("ln_final", "text_projection", "text.ln_final", "text.text_projection")


def last_layers(model: nn.Module, count: int) -> list[str]:
    """Names of the weights of the last layers of both towers and of everything after them.

    Args:
        model: An `open_clip` model with a transformer or ResNet for images and a transformer for texts.
        count: Number of layers per tower (transformer or residual blocks); a shorter tower is included whole. The last
            norm, the projection and attention pooling, if any, follow the layers and are included.

    Raises:
        ValueError: A tower has another architecture, or both have fewer layers.
    """
    towers = {
        "images": (_blocks(model, IMAGE_BLOCKS), IMAGE_END),
        "texts": (_blocks(model, TEXT_BLOCKS), TEXT_END),
    }
    if unknown := [name for name, (blocks, _) in towers.items() if not blocks]:
        raise ValueError(
            f"the encoder's tower for {' and '.join(unknown)} has an unsupported architecture; keep trainable_layers=0"
        )
    if count > (most := max(len(blocks) for blocks, _ in towers.values())):
        raise ValueError(f"trainable_layers={count}: the encoder has only {most} layers")
    places = [place for blocks, end in towers.values() for place in (*blocks[-count:], *end)] if count else []
    return [name for name, _ in model.named_parameters() if any(name == p or name.startswith(f"{p}.") for p in places)]


def _blocks(model: nn.Module, rows: tuple[str, ...]) -> list[str]:
    """Layers of the given sequences that the model has, in order."""
    modules = dict(model.named_modules())
    return [f"{row}.{name}" for row in rows if row in modules for name, _ in modules[row].named_children()]
