"""Scorers without weights: as large as the published ones, and as those that are on this machine."""

from pathlib import Path
from typing import Any

import pytest
import torch

from t2ifb.diffusion.dry_run import DryRun
from t2ifb.scorers import AestheticScore, BLIPScore, CLIPScore, ImageReward, RewardModel
from t2ifb.scorers.clip_source import CLIPSource
from t2ifb.scorers.heads import MLPHead
from t2ifb.scorers.outline import KINDS, CLIPOutline, outline
from t2ifb.shapes import weights
from tests.scorers.parts import tiny_clip

WORLD = Path(weights.__file__).parent
LARGE = {"model": "ViT-L-14-quickgelu", "pretrained": "openai", "precision": "fp32"}
SMALL = {"_target_": "t2ifb.scorers.clip_source.CLIPSource", "model": f"local-dir:{WORLD / 'clip'}"}
MILLIONS = {
    "CLIPScore": 427.62,
    "AestheticScore": 428.54,
    "RewardModel": 429.49,
    "Ensemble": 429.49,
    "BLIPScore": 445.74,
    "ImageReward": 446.67,
    "HPSv2": 986.11,
    "PickScore": 986.11,
}


def node(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"t2ifb.scorers.{kind}.from_pretrained", **arguments}


@pytest.mark.parametrize("kind", MILLIONS)
def test_published_scorers_without_a_download(kind: str) -> None:
    with DryRun():
        scorer = outline(node(kind, source=None if kind == "CLIPScore" else "an/id"), LARGE, MLPHead)
        assert scorer is not None
        images = torch.empty(2, 3, 512, 512, device="meta", requires_grad=True)
        scores = scorer(images, ["a", "b"])
        (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert sum(weight.numel() for weight in scorer.parameters()) / 1e6 == pytest.approx(MILLIONS[kind], abs=0.01)
    assert (scores.shape, gradient.shape) == ((2,), images.shape)


def test_every_kind_has_its_size_here() -> None:
    assert set(KINDS) == {*MILLIONS, "Mix"}


def test_the_worlds_scorers_have_the_shapes_of_their_files() -> None:
    source = CLIPSource(SMALL["model"])
    real = {
        "CLIPScore": CLIPScore(source.load()),
        "AestheticScore": AestheticScore.from_pretrained(WORLD / "aesthetic", source),
        "BLIPScore": BLIPScore.from_pretrained(WORLD / "blip"),
        "ImageReward": ImageReward.from_pretrained(WORLD / "image_reward"),
    }
    arguments: dict[str, dict[str, Any]] = {
        "CLIPScore": {"source": SMALL},
        "AestheticScore": {"encoder": SMALL},
        "BLIPScore": {"source": str(WORLD / "blip")},
        "ImageReward": {"source": str(WORLD / "image_reward")},
    }
    for kind, scorer in real.items():
        with DryRun():
            found = outline(node(kind, **arguments[kind]), LARGE, MLPHead)
        assert found is not None
        shapes = [{n: (w.shape, w.dtype) for n, w in each.named_parameters()} for each in (scorer, found)]
        assert shapes[0] == shapes[1], kind
        assert all(tensor.device.type == "meta" for tensor in (*found.parameters(), *found.buffers()))


def test_an_export_is_as_large_as_its_own_encoder(tmp_path: Path) -> None:
    encoder = CLIPSource(f"local-dir:{tiny_clip(tmp_path / 'clip')}").load()
    RewardModel(encoder, MLPHead(12)).save_pretrained(tmp_path / "export")
    with DryRun():
        found = outline(node("RewardModel", source=str(tmp_path / "export")), LARGE, MLPHead)
    assert found is not None
    assert sum(w.numel() for w in found.encoder.parameters()) == sum(w.numel() for w in encoder.parameters())


def test_precision_and_mixes() -> None:
    with DryRun():
        halves = outline(node("BLIPScore", source=str(WORLD / "blip"), precision="fp16"), SMALL, MLPHead)
        mix = outline(
            {
                "_target_": "t2ifb.scorers.Mix",
                "scorers": {"a": node("CLIPScore", source=SMALL), "b": {"_target_": "x"}},
            },
            SMALL,
            MLPHead,
        )
        assert outline({"_target_": "t2ifb.shapes.gold.GoldScore"}, SMALL, MLPHead) is None
    assert halves is not None
    assert {weight.dtype for weight in halves.parameters()} == {torch.float16}
    assert mix is not None
    assert list(mix.scorers) == ["a"]


def test_an_encoder_that_does_not_exist(tmp_path: Path) -> None:
    with DryRun():
        with pytest.raises(ValueError, match="open_clip has no model 'ViT-L-15'"):
            CLIPOutline.of({"model": "ViT-L-15"}).load()
        with pytest.raises(ValueError, match="has no open_clip_config.json"):
            CLIPOutline.of({"model": f"local-dir:{tmp_path}"}).load()
