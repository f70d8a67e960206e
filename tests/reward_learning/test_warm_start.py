"""Reward training that starts from a preference model."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from t2ifb.reward_learning.warm_start import warm_start
from t2ifb.scorers import HPSv2, ImageReward, PickScore, RewardModel
from t2ifb.scorers.clip import CLIPSource
from tests.scorers.blip_parts import write_small
from tests.scorers.parts import tiny_clip
from tests.scorers.published_parts import HPS_MODEL, write_hps, write_pick_score
from tests.training.worlds import make_training, run_training

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a red circle", "two blue squares"]


def test_without_init_nothing_changes() -> None:
    source = CLIPSource("ViT-L-14-quickgelu", "openai")
    assert warm_start(source) is None
    assert replace(source, init="hps_v2") == source
    assert "init" not in source.to_dict()


def test_the_start_from_pick_score_scores_as_pick_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2IFB_DATA", str(tmp_path / "cache"))
    folder = write_pick_score(tmp_path / "pick")
    start = warm_start(CLIPSource("ViT-L-14", "openai", trainable_layers=1, init=f"pick_score:{folder}"))
    assert start is not None
    assert start.encoder.trainable_layers == 1
    model = start.model()
    assert model.name == "PickScore before training"
    torch.testing.assert_close(model(IMAGES, PROMPTS), PickScore.from_pretrained(folder)(IMAGES, PROMPTS))


def test_the_start_from_hps_takes_its_file(tmp_path: Path) -> None:
    (tmp_path / "HPS_v2.1_compressed.pt").write_bytes(b"")
    start = warm_start(CLIPSource("ViT-L-14", "openai", init=f"hps_v2:{tmp_path}"))
    assert start is not None
    assert (start.encoder.model, start.encoder.quick_gelu) == ("ViT-H-14", False)
    assert start.encoder.pretrained == str(tmp_path / "HPS_v2.1_compressed.pt")
    assert start.head(embedding_dim=8)(torch.ones(1, 8), torch.ones(1, 8)).item() == pytest.approx(800, rel=1e-5)


@pytest.mark.parametrize("kind", ["image_reward", "pick_score", "hps_v2"])
def test_training_starts_from_a_published_model_and_is_exported(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T2IFB_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr("t2ifb.scorers.hps_v2.MODEL", HPS_MODEL)  # the same layout, smaller
    (tmp_path / "weights").mkdir()
    write, model, title, scale = {
        "image_reward": (write_small, ImageReward.from_pretrained, "ImageReward", 1.0),
        "pick_score": (write_pick_score, PickScore.from_pretrained, "PickScore", 1.0),
        "hps_v2": (write_hps, partial(HPSv2.from_pretrained, model=HPS_MODEL), "HPSv2.1", 100.0),
    }[kind]
    file = write(tmp_path / "weights")
    folder = file if file.is_dir() else file.parent
    encoder = CLIPSource("ViT-L-14", "openai", init=f"{kind}:{folder}")
    published = model(file)
    for name, rate in (("still", 0.0), ("trained", 0.05)):
        optimizer = partial(torch.optim.SGD, lr=rate)
        training = make_training(tmp_path, encoder=encoder, optimizer=optimizer, epochs=1, baselines={})
        summary = run_training(training, tmp_path / name)
        table = summary["test/table"]
        assert summary["init"] == title
        assert f"{title} before training" in table
        trained = RewardModel.from_pretrained(tmp_path / name)
        same = torch.allclose(trained(IMAGES, PROMPTS), scale * published(IMAGES, PROMPTS), rtol=1e-4, atol=1e-5)
        assert same == (rate == 0)


def test_unknown_models_are_refused() -> None:
    with pytest.raises(ValueError, match="nowhere does not exist; expected a run folder"):
        warm_start(CLIPSource("ViT-L-14", "openai", init="nowhere"))


def test_training_continues_from_a_reward_run_and_is_compared_with_it(tmp_path: Path) -> None:
    run_training(make_training(tmp_path, epochs=2), tmp_path / "first")
    first = RewardModel.from_pretrained(tmp_path / "first")
    encoder = CLIPSource(f"local-dir:{tmp_path / 'clip'}", init=str(tmp_path / "first"))
    still = partial(torch.optim.SGD, lr=0.0)
    training = make_training(tmp_path, encoder=encoder, optimizer=still, epochs=1)
    summary = run_training(training, tmp_path / "second")
    torch.testing.assert_close(
        RewardModel.from_pretrained(tmp_path / "second")(IMAGES, PROMPTS), first(IMAGES, PROMPTS)
    )
    table = summary["test/table"]
    assert table["reward model first before training"] == pytest.approx(table["this model"])
    assert summary["init"] == "reward model first"
    assert json.loads((tmp_path / "second/export/config.json").read_text())["encoder"]["trainable_layers"] == 0


@pytest.mark.slow
def test_tuned_layers_need_the_same_number_of_layers(tmp_path: Path) -> None:
    clip = CLIPSource(f"local-dir:{tiny_clip(tmp_path / 'clip')}", trainable_layers=1)
    training = make_training(tmp_path, encoder=clip, epochs=1, baselines={})
    run_training(training, tmp_path / "first")
    first = RewardModel.from_pretrained(tmp_path / "first")
    start = warm_start(replace(clip, init=str(tmp_path / "first")))
    assert start is not None
    torch.testing.assert_close(start.model()(IMAGES, PROMPTS), first(IMAGES, PROMPTS))
    with pytest.raises(ValueError, match=r"has tuned the last 1 layers of its encoder; set trainable_layers=1"):
        warm_start(replace(clip, trainable_layers=0, init=str(tmp_path / "first")))
