"""Which layers of a model can be tuned."""

import open_clip
import pytest
from torch import nn

from t2ifb.scorers.clip_layers import last_layers

TEXT = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 3}
VIT = {"image_size": 16, "layers": 4, "width": 16, "head_width": 8, "patch_size": 8}
RESNET = {"image_size": 32, "layers": [1, 2, 1, 1], "width": 8, "head_width": 8}


def clip(vision: dict[str, object]) -> nn.Module:
    return open_clip.CLIP(embed_dim=12, vision_cfg=vision, text_cfg=TEXT)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_of_a_vision_transformer_they_are_those_that_open_clip_unlocks(count: int) -> None:
    model = clip(VIT).requires_grad_(False)
    model.visual.lock(unlocked_groups=count + 1)  # type: ignore[union-attr, operator]
    images = {name for name, weight in model.named_parameters() if weight.requires_grad}
    found = set(last_layers(model, count))
    assert {name for name in found if name.startswith("visual.")} == images
    blocks = {name.split(".")[2] for name in found if name.startswith("transformer.")}
    assert blocks == {str(number) for number in range(3 - count, 3)}
    assert {"ln_final.weight", "ln_final.bias", "text_projection"} < found
    assert not found & {"token_embedding.weight", "positional_embedding", "logit_scale"}


def test_a_resnet_has_blocks_and_attention_pooling() -> None:
    model = clip(RESNET)
    found = last_layers(model, 4)
    places = {".".join(name.split(".")[:3]) for name in found if name.startswith("visual.layer")}
    assert places == {"visual.layer2.0", "visual.layer2.1", "visual.layer3.0", "visual.layer4.0"}
    assert any(name.startswith("visual.attnpool.") for name in found)
    assert len(found) == len(set(found))


def test_every_count_adds_to_the_one_before() -> None:
    model = clip(RESNET)
    sets = [set(last_layers(model, count)) for count in range(6)]
    assert sets[0] == set()
    assert all(fewer < more for fewer, more in zip(sets, sets[1:], strict=False))


def test_the_towers_of_custom_text_clip_are_known_too() -> None:
    model = open_clip.CustomTextCLIP(embed_dim=12, vision_cfg=VIT, text_cfg=TEXT)
    found = last_layers(model, 1)
    assert "text.text_projection" in found
    assert {name.split(".")[3] for name in found if name.startswith("text.transformer.")} == {"2"}


def test_what_has_no_such_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="trainable_layers=5: the encoder has only 4 layers"):
        last_layers(clip(VIT), 5)
    with pytest.raises(ValueError, match="tower for images and texts has an unsupported architecture"):
        last_layers(nn.Linear(2, 2), 1)
