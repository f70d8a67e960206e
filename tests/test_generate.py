"""`python -m t2ifb.generate` draws what it is asked for, and says what it was not told."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from t2ifb.config.command import run
from t2ifb.diffusion.lora import LoRA, save_lora
from t2ifb.generate import generate
from t2ifb.scorers import CLIPScore
from t2ifb.scorers.clip import CLIPSource
from t2ifb.shapes.gold import GoldScore
from t2ifb.shapes.weights import CLIP, PIPELINE
from tests.diffusion.parts import PROMPTS, shapes_model

Run = Callable[..., int]


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def go(*arguments: str) -> int:
        quick = ["sampling.num_inference_steps=2", "device=cpu"]
        monkeypatch.setattr(sys, "argv", ["generate", *arguments, *quick])
        try:
            return run("generate", generate)
        except SystemExit as stop:
            return int(stop.code or 0)

    return go


def folder(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "outputs" / "shapes" / "generate").iterdir()
    return found


def test_base_and_tuned_stand_side_by_side(go: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = shapes_model()
    for weight in LoRA(rank=2, lora_alpha=8.0).add(model):
        weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    save_lora(model, tmp_path / "run" / "export", PIPELINE)
    (tmp_path / "wild.txt").write_text("\n".join([*PROMPTS, "../<script> " * 80]))
    assert go("file=wild.txt", "lora=run", "images_per_prompt=2", "best_of=2", "scorer=aesthetic_score") == 0
    index = json.loads((folder(tmp_path) / "prompts.json").read_text())
    assert [entry["prompt"] for entry in index] == [*PROMPTS, ("../<script> " * 80).strip()]
    assert "longer than the text encoder's context and cut: 1 prompts" in capsys.readouterr().out
    pictures = {
        name: [np.asarray(Image.open(folder(tmp_path) / file)).astype(int) for file in index[0]["images"][name]]
        for name in ("base", "tuned")
    }
    assert np.abs(pictures["base"][0] - pictures["base"][1]).max() > 10
    assert np.abs(pictures["base"][0] - pictures["tuned"][0]).max() > 10
    assert len(list(folder(tmp_path).glob("*.png"))) == 3 * 2 * 2 + 1
    assert [len(index[0]["scores"][name]) for name in ("base", "tuned")] == [2, 2]
    assert go("lora=run", "merge=merged") == 0
    assert "merged pipeline: merged (without safety_checker)" in capsys.readouterr().out
    merged = StableDiffusionPipeline.from_pretrained("merged").unet.state_dict()
    plain = StableDiffusionPipeline.from_pretrained(PIPELINE, dtype=torch.float32).unet.state_dict()
    assert merged.keys() == plain.keys()
    assert {name.split(".")[-2] for name in plain if not torch.equal(plain[name], merged[name])} == {
        "to_q", "to_k", "to_v", "0"
    }  # fmt: skip
    assert go("merge=other") != 0
    assert "merge: there is nothing to merge; also give lora=<run folder>" in capsys.readouterr().err


def test_without_adapters_the_base_model_alone_draws(
    go: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go("split=test", "prompts.test.count=3", "most=2") == 0
    assert "2 of 3 prompts of test; most=3 draws all" in capsys.readouterr().out
    index = json.loads((folder(tmp_path) / "prompts.json").read_text())
    assert [list(entry["images"]) for entry in index] == [["base"], ["base"]]


def test_all_prompts_that_are_typed_are_drawn(go: Run, tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("a red circle\na blue square\n")
    for wish in ("prompt=[a red circle,a blue square]", "file=some.txt"):
        assert go(wish, "most=1", f"hydra.run.dir={wish[:4]}") == 0
        assert len(json.loads((tmp_path / wish[:4] / "prompts.json").read_text())) == 2


def test_the_best_of_several_images_is_kept_by_a_scorer(
    go: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["split=test", "prompts.test.count=3", "most=2", "scorer=clip_score", "batch_size=4"]
    assert go(*asked, "best_of=3") == 0
    assert "mean of 3" in capsys.readouterr().out
    (place,) = (tmp_path / "outputs" / "shapes" / "generate").iterdir()
    index, table = json.loads((place / "prompts.json").read_text()), pd.read_csv(place / "scores.csv")
    assert len(table) == 2 * 3
    for entry in index:
        rows = table[table.prompt == entry["prompt"]]
        assert rows.score.nunique() == 3 and rows.kept.tolist() == (rows.score == rows.score.max()).tolist()
        assert entry["scores"]["base"] == [pytest.approx(rows.score.max())]
        assert rows.image.unique().tolist() == entry["images"]["base"]
    # The file is the image that was kept: scored again, it has the recorded score.
    kept = table[table.kept].iloc[0]
    pixels = torch.from_numpy(np.asarray(Image.open(place / kept.image)).copy()).permute(2, 0, 1)[None] / 255
    score = CLIPScore.from_pretrained(CLIPSource(f"local-dir:{CLIP}"))(pixels, [kept.prompt])
    assert float(score) == pytest.approx(kept.score, abs=1e-4)


def test_images_without_a_score_are_no_best_ones(
    go: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(GoldScore, "forward", lambda self, images, prompts: torch.full((len(prompts),), torch.nan))
    assert go("split=test", "prompts.test.count=2", "best_of=2", "scorer=gold") != 0
    assert "it gave no finite score for any image of 2 prompts" in capsys.readouterr().err


def test_one_image_is_only_scored(go: Run, tmp_path: Path) -> None:
    assert go("split=test", "prompts.test.count=2", "scorer=gold") == 0
    with_scores = json.loads((folder(tmp_path) / "prompts.json").read_text())
    assert all(len(entry["scores"]["base"]) == 1 for entry in with_scores)


def test_bad_prompts_are_skipped_by_the_setting_that_the_message_names(
    go: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.json").write_text('["a red circle", ""]')
    assert go("file=prompts.json") == 1
    assert "or set on_error=skip to drop these entries" in capsys.readouterr().err
    assert go("file=prompts.json", "on_error=skip") == 0
    assert "1 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "what to draw"),
        (["split=test", "file=a.txt"], "what to draw"),
        (["split=tset"], "expected train, validation or test"),
        (["file=nowhere.txt"], "nowhere.txt does not exist"),
        (["split=test", "lora=nowhere"], "nowhere has no pytorch_lora_weights.safetensors"),
        (["split=test", "most=0"], "at least 1"),
        (["split=test", "best_of=0"], "best_of=0 must be at least 1"),
        (["split=test", "best_of=2"], "best_of=2 needs the scorer that chooses: add scorer=<option>"),
        (["split=test", "best_of=2", "scorer=reward_model"], "scorer: there is no finished reward run"),
    ],
)
def test_what_is_wrong_is_said(go: Run, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert go(*arguments) != 0
    assert message in capsys.readouterr().err
