"""CLIP of the world: as the shipped one in size, read by `open_clip` as it was saved, and trained."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from t2ifb.shapes.training import contrastive, encoder
from t2ifb.shapes.training.encoder import IMAGE_SIZE, Pupil, build, model_config, normalised, save
from t2ifb.shapes.training.vocabulary import build_tokenizer
from t2ifb.shapes.weights import CLIP

PROMPTS = ["a red circle on a gray background", "two blue stars on a white background, poor, blurry"]
HALVES = torch.cat([torch.zeros(2, 3, 64, 32), torch.ones(2, 3, 64, 32)], 3)
HALVES[1] = 1 - HALVES[1]


@pytest.fixture(scope="module")
def pupil() -> Pupil:
    """With the shipped weights: an untrained image tower gives every image nearly the same embedding."""
    pupil = Pupil(build_tokenizer()).eval()
    pupil.clip.load_state_dict(load_file(CLIP / "open_clip_model.safetensors"))
    return pupil


def test_the_shipped_model_has_this_architecture(pupil: Pupil) -> None:
    shipped = json.loads((CLIP / "open_clip_config.json").read_text())
    assert shipped["model_cfg"] == model_config(shipped["model_cfg"]["text_cfg"]["vocab_size"])
    shapes = {name: tensor.shape for name, tensor in load_file(CLIP / "open_clip_model.safetensors").items()}
    assert {name: tensor.shape for name, tensor in pupil.clip.state_dict().items()} == shapes
    assert sum(weight.numel() for weight in build(562).parameters()) == pytest.approx(2e6, rel=0.5)


def test_images_become_twice_as_large_and_go_from_minus_one_to_one() -> None:
    pixels = normalised(torch.tensor([0.0, 0.25, 1.0])[:, None, None, None].expand(-1, 3, 64, 64))
    assert pixels.shape == (3, 3, IMAGE_SIZE, IMAGE_SIZE)
    for image, value in zip(pixels, (-1, -0.5, 1), strict=True):
        torch.testing.assert_close(image, torch.full_like(image, value), atol=1e-5, rtol=0)


def test_embeddings_are_of_unit_length_and_their_scale_is_clips(pupil: Pupil) -> None:
    with torch.no_grad():
        embeddings = [pupil.embed_images(HALVES), pupil.embed_captions(PROMPTS)]
    for each in embeddings:
        torch.testing.assert_close(each.norm(dim=1), torch.ones(2))
        assert (each[0] - each[1]).norm() > 0.1
    assert Pupil(build_tokenizer()).scale().item() == pytest.approx(1 / 0.07, rel=1e-4)  # before training, as CLIP's


def test_open_clip_reads_what_was_saved(pupil: Pupil, tmp_path: Path) -> None:
    save(pupil.clip, tmp_path / "clip")
    model = open_clip.create_model(f"local-dir:{tmp_path / 'clip'}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'clip'}")(PROMPTS)
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode_text(tokens, normalize=True), pupil.embed_captions(PROMPTS), atol=5e-3, rtol=0
        )
        torch.testing.assert_close(
            model.encode_image(normalised(HALVES), normalize=True), pupil.embed_images(HALVES), atol=5e-3, rtol=0
        )
    config = json.loads((tmp_path / "clip" / "open_clip_config.json").read_text())
    assert config["preprocess_cfg"]["mean"] == [0.5, 0.5, 0.5]


def test_a_training_of_few_steps_changes_both_towers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "STEPS", 2)
    monkeypatch.setattr(contrastive, "SCENES_A_BATCH", 4)
    model = encoder.train(tmp_path, seed=0, scenes=6)
    assert not model.training
    torch.manual_seed(0)
    before = Pupil(build_tokenizer()).clip.state_dict()
    changed = {
        name.split(".")[0] for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])
    }
    assert {"visual", "transformer", "token_embedding"} <= changed
    assert {file.name for file in tmp_path.iterdir()} >= {"redrawn.pt", "clip.pt"}
