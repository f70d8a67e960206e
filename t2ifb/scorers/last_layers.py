"""Which weights of CLIP are its last layers, in the forms that `open_clip` has."""

from torch import nn

IMAGE_BLOCKS = ("visual.transformer.resblocks", "visual.layer1", "visual.layer2", "visual.layer3", "visual.layer4")
"""Rows of layers from pixels on: a vision transformer has the first, a ResNet the others."""
IMAGE_END = ("visual.attn_pool", "visual.attn_pool_contrastive", "visual.ln_post", "visual.proj", "visual.attnpool")
TEXT_BLOCKS = ("transformer.resblocks", "text.transformer.resblocks")
TEXT_END = ("ln_final", "text_projection", "text.ln_final", "text.text_projection")


def last_layers(model: nn.Module, count: int) -> list[str]:
    """Names of the weights of the last layers of both towers, and of all that comes behind them.

    Args:
        model: Of `open_clip`, with a transformer or ResNet for images and a transformer for texts.
        count: Layers of each tower (transformer or residual blocks); a tower that has fewer gives all its own. Behind
            them are pooling by attention if there is one, the last norm and the projection.

    Raises:
        ValueError: A tower is of another form, or neither has so many layers.
    """
    towers = {
        "images": (_blocks(model, IMAGE_BLOCKS), IMAGE_END),
        "texts": (_blocks(model, TEXT_BLOCKS), TEXT_END),
    }
    if unknown := [name for name, (blocks, _) in towers.items() if not blocks]:
        raise ValueError(
            f"the encoder's tower for {' and '.join(unknown)} is of a form whose last layers are not known here; "
            "leave encoder.trainable_layers at 0"
        )
    if count > (most := max(len(blocks) for blocks, _ in towers.values())):
        raise ValueError(f"trainable_layers={count}: the encoder has {most} layers")
    places = [place for blocks, end in towers.values() for place in (*blocks[-count:], *end)] if count else []
    return [name for name, _ in model.named_parameters() if any(name == p or name.startswith(f"{p}.") for p in places)]


def _blocks(model: nn.Module, rows: tuple[str, ...]) -> list[str]:
    """The layers of those rows that the model has, from first to last."""
    modules = dict(model.named_modules())
    return [f"{row}.{name}" for row in rows if row in modules for name, _ in modules[row].named_children()]
