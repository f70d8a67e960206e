"""BLIP Score against the network written out once more, and from either of its files."""

from pathlib import Path

import pytest
import torch

from t2ifb.scorers import BLIPScore
from tests.scorers.blip_parts import check_full_geometry, check_network, reference_cosine, write_small


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("image_reward"))


def test_the_network_is_the_original_one(checkpoint: Path) -> None:
    check_network(BLIPScore, reference_cosine, checkpoint)


@pytest.mark.huge
def test_at_full_geometry_from_a_file_in_the_original_layout(tmp_path: Path) -> None:
    check_full_geometry(BLIPScore, reference_cosine, tmp_path)


def test_blip_of_its_own_file_is_blip_of_image_reward(checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    blip = {name.removeprefix("blip."): t for name, t in state.items() if name.startswith("blip.")}
    rest = {"temp": torch.ones(()), "queue_ptr": torch.zeros(1), "visual_encoder_m.cls_token": torch.ones(1)}
    torch.save({"model": blip | rest}, tmp_path / "model_large.pth")
    (tmp_path / "med_config.json").write_text(
        "\ufeff" + checkpoint.with_name("med_config.json").read_text(), encoding="utf-8"
    )
    (tmp_path / "vocab.txt").write_text(checkpoint.with_name("vocab.txt").read_text())
    images, prompts = torch.rand(2, 3, 24, 24), ["a red circle", "a square"]
    one, other = (BLIPScore.from_pretrained(place)(images, prompts) for place in (tmp_path, checkpoint))
    assert torch.equal(one, other)
