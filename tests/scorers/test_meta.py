"""Scorers without weights: as large as the published ones, and as those that are on this machine."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from t2ifb import scorers
from t2ifb.profiling.meta_mode import MetaMode
from t2ifb.scorers import AestheticScore, BLIPScore, CLIPScore, Ensemble, ImageReward, Mix, RewardModel
from t2ifb.scorers.clip import CLIPSource
from t2ifb.scorers.heads import LinearHead, MLPHead
from t2ifb.scorers.meta import MetaCLIP, NoMetaModel, on_meta
from t2ifb.shapes import weights
from t2ifb.shapes.gold import GoldScore
from tests.scorers.parts import tiny_clip

WORLD = Path(weights.__file__).parent
SMALL = partial(CLIPSource, f"local-dir:{WORLD / 'clip'}")
MILLIONS = {
    "CLIPScore": 427.62,
    "AestheticScore": 428.54,
    "RewardModel": 429.49,
    "Ensemble": 431.36,
    "BLIPScore": 445.74,
    "ImageReward": 446.67,
    "HPSv2": 986.11,
    "PickScore": 986.11,
}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "CLIPScore": {"source": partial(CLIPSource, "ViT-L-14-quickgelu", pretrained="openai")},
    "Ensemble": {"sources": ["an/id", "another/id"]},
}


def untrained(source: CLIPSource | None) -> RewardModel:
    built = MetaCLIP.of(source or CLIPSource("ViT-L-14-quickgelu", "openai")).load()
    return RewardModel(built, MLPHead(built.embedding_dim))


def made(scorer: Any, **arguments: Any) -> Any:
    with MetaMode():
        return on_meta(partial(scorer, **arguments), untrained)


@pytest.mark.parametrize("kind", MILLIONS)
def test_published_scorers_without_a_download(kind: str) -> None:
    scorer = made(getattr(scorers, kind).from_pretrained, **ARGUMENTS.get(kind, {"source": "an/id"}))
    with MetaMode():
        images = torch.empty(2, 3, 512, 512, device="meta", requires_grad=True)
        scores = scorer(images, ["a", "b"])
        (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert sum(weight.numel() for weight in scorer.parameters()) / 1e6 == pytest.approx(MILLIONS[kind], abs=0.01)
    assert all(tensor.device.type == "meta" for tensor in (*scorer.parameters(), *scorer.buffers()))
    assert (scores.shape, gradient.shape) == ((2,), images.shape)


def test_the_worlds_scorers_have_the_shapes_of_their_files() -> None:
    built = SMALL()
    real = {
        CLIPScore: (CLIPScore(built.load()), {"source": SMALL}),
        AestheticScore: (AestheticScore.from_pretrained(WORLD / "aesthetic", built), {"encoder": SMALL}),
        BLIPScore: (BLIPScore.from_pretrained(WORLD / "blip"), {"source": str(WORLD / "blip")}),
        ImageReward: (
            ImageReward.from_pretrained(WORLD / "image_reward"),
            {"source": str(WORLD / "image_reward")},
        ),
    }
    for kind, (scorer, arguments) in real.items():
        found = made(kind.from_pretrained, **arguments)
        shapes = [{n: (w.shape, w.dtype) for n, w in each.named_parameters()} for each in (scorer, found)]
        assert shapes[0] == shapes[1], kind
        assert all(tensor.device.type == "meta" for tensor in (*found.parameters(), *found.buffers()))


def test_an_export_is_as_large_as_its_own_encoder_and_head(tmp_path: Path) -> None:
    encoder = CLIPSource(f"local-dir:{tiny_clip(tmp_path / 'clip')}").load()
    for name, head in (("one", MLPHead(12)), ("other", LinearHead(12))):
        RewardModel(encoder, head).save_pretrained(tmp_path / name)
    found = made(RewardModel.from_pretrained, source=str(tmp_path / "other"))
    sizes = [{n: w.shape for n, w in each.named_parameters()} for each in (found, RewardModel(encoder, LinearHead(12)))]
    assert sizes[0] == sizes[1]
    both = made(Ensemble.from_pretrained, sources=[str(tmp_path / "one"), str(tmp_path / "other")])
    assert [type(member.head) for member in both.members] == [MLPHead, LinearHead]
    assert both.members[0].encoder is both.members[1].encoder


def test_precision_and_activation() -> None:
    halves = made(BLIPScore.from_pretrained, source=str(WORLD / "blip"), precision="fp16")
    assert {weight.dtype for weight in halves.parameters()} == {torch.float16}
    source = partial(CLIPSource, "ViT-B-32", pretrained="a_file.pt", quick_gelu=True)
    layers = [type(layer).__name__ for layer in made(CLIPScore.from_pretrained, source=source).encoder.model.modules()]
    assert "QuickGELU" in layers
    assert "GELU" not in layers


def test_what_has_no_outline_is_refused_within_a_mix_too() -> None:
    small = partial(CLIPScore.from_pretrained, source=SMALL)
    assert list(made(Mix, scorers={"a": small, "b": small}, weights={"b": 2.0}).scorers) == ["a", "b"]
    for scorer in (partial(GoldScore), partial(Mix, scorers={"a": small, "b": partial(GoldScore)})):
        with pytest.raises(NoMetaModel, match="GoldScore has no `on_meta`"):
            made(scorer)


def test_an_encoder_that_does_not_exist(tmp_path: Path) -> None:
    with MetaMode():
        with pytest.raises(ValueError, match="open_clip has no model 'ViT-L-15'"):
            MetaCLIP("ViT-L-15").load()
        with pytest.raises(ValueError, match="has no open_clip_config.json"):
            MetaCLIP(f"local-dir:{tmp_path}").load()
