"""CLIP Score is a cosine, from pixels or from cached embeddings, and builds its encoder late."""

from pathlib import Path

import pytest
import torch

from t2ifb.scorers import CLIPScore
from t2ifb.scorers.clip import CLIPEncoder, CLIPSource
from tests.scorers.parts import tiny_clip

PROMPTS = ["a red circle", "Two BLUE squares above a very long sentence that does not fit into the context"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> CLIPEncoder:
    return CLIPSource(f"local-dir:{folder}", device="cpu").load()


def test_clip_score_is_the_cosine(folder: Path, encoder: CLIPEncoder) -> None:
    images = torch.rand(2, 3, 20, 20, requires_grad=True)
    scorer = CLIPScore.from_pretrained(folder)
    scores = scorer(images, PROMPTS)
    cosine = torch.cosine_similarity(encoder.encode_images(images), encoder.encode_prompts(PROMPTS))
    torch.testing.assert_close(scores, cosine)
    assert scores.dtype == torch.float32
    assert torch.autograd.grad(scores.sum(), images)[0].any()
    torch.testing.assert_close(CLIPScore(encoder)(images, PROMPTS), cosine)


def test_clip_score_builds_its_encoder_when_it_sees_an_image(folder: Path) -> None:
    scorer = CLIPScore.from_pretrained(CLIPSource(f"local-dir:{folder}", device="cpu")).to("meta")
    assert scorer.source is not None
    assert sum(1 for _ in scorer.parameters()) == 0
    assert next(scorer.encoder.parameters()).is_meta  # type: ignore[attr-defined]


def test_cached_embeddings_score_as_pixels_do(encoder: CLIPEncoder) -> None:
    images = torch.rand(2, 3, 20, 20)
    cached = CLIPScore.score_embeddings(encoder.encode_images(images), encoder.encode_prompts(PROMPTS))
    assert torch.equal(CLIPScore(encoder)(images, PROMPTS), cached)
    vectors = torch.eye(3)
    assert CLIPScore.score_embeddings(vectors, vectors.roll(1, 0)).tolist() == [0, 0, 0]
    assert CLIPScore.score_embeddings(vectors, -vectors).tolist() == [-1, -1, -1]


def test_other_numbers_of_images_and_prompts_are_refused(encoder: CLIPEncoder) -> None:
    with pytest.raises(ValueError, match="got 2 images and 1 prompts"):
        CLIPScore(encoder)(torch.rand(2, 3, 16, 16), PROMPTS[:1])
