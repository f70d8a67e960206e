"""A CLIP of transformers gives the same embeddings in open_clip's form."""

import os
from pathlib import Path

import torch

from t2ifb.scorers import PickScore
from t2ifb.scorers.conversion import pick_score_encoder
from tests.scorers.published_parts import write_pick_score

PROMPTS = ["a red circle", "Two BLUE squares above a very long sentence that does not fit into the context"]


def test_pick_scores_network_scores_the_same_as_an_encoder(tmp_path: Path) -> None:
    folder = write_pick_score(tmp_path / "pick")
    source, scale = pick_score_encoder(folder, tmp_path / "converted")
    encoder = source.load()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    cosine = (encoder.encode_images(images) * encoder.encode_prompts(PROMPTS)).sum(1)
    torch.testing.assert_close(scale * cosine, PickScore.from_pretrained(folder)(images, PROMPTS), rtol=1e-4, atol=1e-4)
    assert encoder.cut_prompts(PROMPTS) == PROMPTS[1:]


def test_it_is_converted_once_for_each_state_of_the_files(tmp_path: Path) -> None:
    folder = write_pick_score(tmp_path / "pick")
    first, _ = pick_score_encoder(folder, tmp_path / "converted")
    assert first.folder is not None
    made = (first.folder / "open_clip_model.safetensors").stat().st_mtime_ns
    assert pick_score_encoder(folder, tmp_path / "converted")[0] == first
    assert (first.folder / "open_clip_model.safetensors").stat().st_mtime_ns == made
    os.utime(folder / "model.safetensors", (0, 0))
    second, _ = pick_score_encoder(folder, tmp_path / "converted")
    assert second != first
    os.utime(folder / "preprocessor_config.json", (0, 0))
    assert pick_score_encoder(folder, tmp_path / "converted")[0] not in (first, second)
