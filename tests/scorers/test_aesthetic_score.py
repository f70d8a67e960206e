from pathlib import Path

import pytest
import torch

from t2ifb.scorers import AestheticScore
from t2ifb.scorers.aesthetic_score import AestheticHead
from t2ifb.scorers.clip import CLIPSource
from tests.conftest import real_data
from tests.scorers.parts import tiny_clip
from tests.scorers.published_parts import write_aesthetic_head


def by_hand(state: dict[str, torch.Tensor], embeddings: torch.Tensor) -> torch.Tensor:
    """The five affine maps composed to one, in double precision."""
    weight, bias = torch.eye(embeddings.shape[1]).double(), torch.zeros(embeddings.shape[1]).double()
    for number in (0, 2, 4, 6, 7):
        layer = state[f"layers.{number}.weight"].double()
        weight, bias = layer @ weight, layer @ bias + state[f"layers.{number}.bias"].double()
    return (embeddings.double() @ weight.T + bias).squeeze(1).float()


def test_the_published_head_gives_ratings() -> None:
    path = real_data("sac+logos+ava1-l14-linearMSE.pth")
    head = AestheticHead.from_checkpoint(path)
    embeddings = torch.nn.functional.normalize(torch.randn(64, 768, generator=torch.Generator().manual_seed(0)), dim=1)
    ratings = head(embeddings)
    assert ratings.shape == (64,)
    torch.testing.assert_close(
        ratings, by_hand(torch.load(path, "cpu", weights_only=True), embeddings), rtol=1e-4, atol=1e-4
    )


def test_it_scores_the_images_embedding_whatever_the_prompt(tmp_path: Path) -> None:
    state = write_aesthetic_head(tmp_path)
    encoder = CLIPSource(f"local-dir:{tiny_clip(tmp_path / 'clip')}", device="cpu")
    scorer = AestheticScore.from_pretrained(tmp_path, encoder)
    images = torch.rand(3, 3, 20, 16, requires_grad=True)
    scores = scorer(images, ["a", "b", "c"])
    torch.testing.assert_close(scores, by_hand(state, encoder.load().encode_images(images)))
    assert torch.equal(scores, scorer(images, ["x", "y", "z"]))
    assert torch.equal(scores, scorer.train()(images, ["a", "b", "c"])) is False  # dropout is for training only
    scores.sum().backward()
    assert images.grad is not None
    assert images.grad.any()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_aesthetic_head(tmp_path, 13)
    encoder = CLIPSource(f"local-dir:{tiny_clip(tmp_path / 'clip')}", device="cpu").load()
    with pytest.raises(ValueError, match=r"expects embeddings of width 13, .* returns 12"):
        AestheticScore.from_pretrained(tmp_path, encoder)
    torch.save({"layers.0.weight": torch.ones(1024, 12), "extra": torch.ones(1)}, tmp_path / "head.pth")
    with pytest.raises(ValueError, match=r"lacks layers\.0\.bias.* unknown extra"):
        AestheticHead.from_checkpoint(tmp_path / "head.pth")
