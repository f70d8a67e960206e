"""ImageReward against the network written out once more, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from t2ifb.scorers import ImageReward
from tests.scorers.blip_parts import check_full_geometry, check_network, reference_reward, write_small


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("image_reward"))


def test_the_network_is_the_original_one(checkpoint: Path) -> None:
    check_network(ImageReward, reference_reward, checkpoint)


@pytest.mark.huge
def test_at_full_geometry_from_a_file_in_the_original_layout(tmp_path: Path) -> None:
    check_full_geometry(ImageReward, reference_reward, tmp_path)


def test_missing_unknown_and_misshapen_tensors_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)

    def refused(changed: dict[str, Tensor], message: str) -> None:
        torch.save(changed, tmp_path / "ImageReward.pt")
        with pytest.raises(ValueError, match=message):
            ImageReward.from_checkpoint(tmp_path / "ImageReward.pt")

    refused(state | {"blip.visual_encoder.extra": torch.ones(1)}, "unknown visual_encoder.extra")
    refused({n: t for n, t in state.items() if n != "blip.vision_proj.bias"}, "lacks vision_proj.bias")
    refused({n: t for n, t in state.items() if n != "mlp.layers.7.bias"}, r"lacks 7\.bias")
    refused(state | {"mlp.layers.0.weight": torch.ones(1024, 5)}, "head does not match")
    refused(state | {"blip.visual_encoder.norm.weight": torch.ones(5)}, "do not form a BLIP model")
    refused({"something": torch.ones(1)}, "is not a checkpoint of BLIP")
    (tmp_path / "ImageReward.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot read .* as a checkpoint"):
        ImageReward.from_pretrained(tmp_path)


def test_what_is_missing_is_said_with_the_command_that_gets_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="hf download zai-org/ImageReward ImageReward.pt"):
        ImageReward.from_pretrained()
    with pytest.raises(ValueError, match=f"the folder {tmp_path} has no ImageReward.pt"):
        ImageReward.from_pretrained(tmp_path)
    for vocabulary in (tmp_path / "nowhere", tmp_path, "google-bert/bert-base-uncased"):
        scorer = ImageReward.from_pretrained(checkpoint, vocabulary=vocabulary)
        with pytest.raises(ValueError, match="hf download google-bert/bert-base-uncased"):
            scorer(torch.rand(1, 3, 24, 24), ["a red circle"])


def test_a_broken_configuration_or_file_is_named(checkpoint: Path, tmp_path: Path) -> None:
    for heads in (0, 7):
        (tmp_path / "med_config.json").write_text(json.dumps({"num_attention_heads": heads, "layer_norm_eps": 1e-12}))
        with pytest.raises(ValueError, match=f"{checkpoint} is not a checkpoint of BLIP"):
            ImageReward.from_checkpoint(checkpoint, tmp_path / "med_config.json")
    (tmp_path / "image_reward.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot read .* as a checkpoint"):
        ImageReward.from_pretrained(tmp_path)
