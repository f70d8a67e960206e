"""Every experiment of `conf/`, as typed, on a few pictures in ImageRewardDB's layout: two updates each."""

import json
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from t2ifb.config.command import run
from t2ifb.config.paths import conf_folder
from t2ifb.data.imagereward_writer import Record, write_imagereward_db
from t2ifb.scorers import RewardModel
from t2ifb.shapes.grammar import scenes
from t2ifb.shapes.renderer import render
from t2ifb.train import train
from tests.scorers.parts import tiny_clip

EXPERIMENTS = sorted(file.stem for file in (conf_folder() / "experiment").glob("*.yaml"))


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six prompts a split, the right picture ranked above two others."""
    folder, rng = tmp_path_factory.mktemp("db"), np.random.default_rng(0)
    for split in ("train", "validation", "test", "compositional"):
        records = []
        for number, scene in enumerate(drawn := scenes(split, 6, seed=0)):
            for shown, rank in ((scene, 1), (drawn[number - 1], 2), (drawn[number - 2], 2)):
                image = Image.fromarray((render(shown, rng) * 255).round().astype(np.uint8))
                records.append(Record(f"{split}-{number}", scene.prompt, "", image, rank, 4, 4, 4))
        write_imagereward_db(folder, split, records)
    return folder


def take_two_steps(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> Path:
    """Run `python -m t2ifb.train` in a folder; all comparisons make one batch, two epochs two updates."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("T2IFB_DATA", str(folder / "data"))
    options = ["build=null", "algorithm.batch_size=100", "algorithm.epochs=2", "logger=none", "trainer=cpu"]
    monkeypatch.setattr(sys, "argv", ["train", *arguments, *options])
    assert run("train", train) == 0
    (summary,) = folder.glob("outputs/*/*/*/summary.json")
    return summary.parent


@pytest.mark.parametrize("domain", ["shapes", "sd15"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_takes_two_steps(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch, experiment: str, domain: str
) -> None:
    encoder = [] if domain == "shapes" else [f"encoder.model=local-dir:{tiny_clip(tmp_path / 'clip')}"]
    encoder += [] if domain == "shapes" else ["encoder.pretrained=null"]
    arguments = [f"+experiment={experiment}", f"domain={domain}", f"dataset.source={database}", *encoder]
    folder = take_two_steps(monkeypatch, tmp_path, *arguments)
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    summary = json.loads((folder / "summary.json").read_text())
    tested = ["test", "compositional"] if domain == "shapes" else ["test"]
    for split in tested:
        assert {"random", "CLIP Score", "this model"} <= summary[f"{split}/table"].keys()
        assert (folder / f"table_{split}.md").exists()
    if domain == "shapes":
        assert summary["test/table"]["annotator ceiling"] == 1.0
        assert summary["test/by_part"].keys() == {"alignment", "fidelity"}
        assert summary["test/by_part"]["alignment"]["annotator ceiling"] > 0.9  # of clean pictures gold is alignment


@pytest.mark.slow
def test_the_reports_recipe_with_vit_l_14_from_a_local_file(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    torch.save(open_clip.create_model("ViT-L-14-quickgelu").state_dict(), weights := tmp_path / "vit_l_14.pt")
    folder = take_two_steps(
        monkeypatch, tmp_path, "+experiment=reward_mlp", "domain=sd15", f"dataset.source={database}",
        f"encoder.pretrained={weights}",
    )  # fmt: skip
    published = json.loads((folder / "table_test.json").read_text())
    assert {row["published"] for row in published} >= {54.82, 57.35, 57.76, 65.14, 62.82}
    reward = RewardModel.from_pretrained(folder)
    images = torch.rand(2, 3, 300, 200, requires_grad=True)
    reward(images, ["a cat", "a dog"]).sum().backward()
    assert images.grad is not None
    assert images.grad.any()
