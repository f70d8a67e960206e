"""A text names an encoder or a scorer, or the message says what it could have been."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from t2ifb.scorers import AestheticScore, BLIPScore, HPSv2, ImageReward, PickScore, RewardModel, scorer_classes
from t2ifb.scorers.clip import CLIPSource
from t2ifb.scorers.heads import MLPHead
from t2ifb.scorers.reward_model import write_export
from t2ifb.scorers.shorthand import clip_source, scorer_part
from t2ifb.utils.reward_runs import EXPORT
from tests.scorers.parts import tiny_clip

NOWHERE = Path("nowhere")


def source_of(part: "partial[Any]") -> str:
    assert part.func == RewardModel.from_pretrained and not part.args and part.keywords.keys() == {"source"}
    return str(part.keywords["source"])


def finished_run(run: Path, second: int = 1) -> Path:
    (run / EXPORT).parent.mkdir(parents=True)
    (run / EXPORT).touch()
    (run / "summary.json").write_text("{}")
    os.utime(run / "summary.json", (second, second))
    return run


def test_an_encoder_that_is_a_source_is_unchanged() -> None:
    source = CLIPSource("ViT-B-32", "openai")
    assert clip_source(source) is source


def test_a_folder_is_an_encoder_with_and_without_its_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_clip(tmp_path / "clip")
    for text in (folder, str(folder), f"local-dir:{folder}"):
        assert clip_source(text) == CLIPSource(f"local-dir:{folder}")
    assert clip_source(folder).load().embedding_dim == 12
    monkeypatch.setenv("HOME", str(tmp_path))
    assert clip_source("~/clip").folder == folder
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ViT-B-32" / "openai").mkdir(parents=True)
    assert clip_source("ViT-B-32/openai") == CLIPSource("local-dir:ViT-B-32/openai")  # a folder comes first


def test_a_prefix_says_that_it_is_a_folder_even_if_none_is_there() -> None:
    assert clip_source("local-dir:not/there") == CLIPSource("local-dir:not/there")


@pytest.mark.parametrize(
    ("text", "model", "pretrained"),
    [
        ("ViT-L-14-quickgelu/openai", "ViT-L-14-quickgelu", "openai"),
        ("ViT-B-32/weights/of/mine.pt", "ViT-B-32", "weights/of/mine.pt"),
        ("ViT-B-32//weights/mine.pt", "ViT-B-32", "/weights/mine.pt"),
    ],
)
def test_an_encoder_is_a_model_and_its_weights(text: str, model: str, pretrained: str) -> None:
    assert clip_source(text) == CLIPSource(model, pretrained)


@pytest.mark.parametrize("text", ["", "ViT-B-32", "ViT-B-32/", "/not-there"])
def test_an_encoder_without_model_or_weights_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"^encoder='{text}' is neither a folder nor <model>/<pretrained>, such as"):
        clip_source(text)


@pytest.mark.parametrize("spelling", ["image_reward", "ImageReward", "imagereward", "IMAGE_REWARD"])
def test_a_scorers_name_may_be_spelled_as_class_or_as_file(spelling: str) -> None:
    part = scorer_part(spelling, "reward", NOWHERE)
    assert part.func == ImageReward.from_pretrained and not part.args and not part.keywords


def test_a_scorer_needs_to_be_given_what_it_cannot_do_without() -> None:
    ready = {}
    for name in scorer_classes():
        try:
            ready[name] = scorer_part(name, "judges['x']", NOWHERE).func
        except ValueError as error:
            assert str(error).startswith(f"judges['x']='{name}' needs ")
    kinds = AestheticScore, BLIPScore, HPSv2, ImageReward, PickScore
    assert ready == {kind.__name__: kind.from_pretrained for kind in kinds}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clip_score", r"^reward='CLIPScore' needs source; give reward=CLIPScore\.from_pretrained\(source=…\)$"),
        ("ensemble", r"^reward='Ensemble' needs sources; give reward=Ensemble\.from_pretrained\(sources=…\)$"),
        ("Mix", r"^reward='Mix' needs scorers; give reward=Mix\(scorers=…\)$"),
    ],
)
def test_the_message_shows_how_to_give_what_a_scorer_needs(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scorer_part(name, "reward", NOWHERE)


@pytest.mark.parametrize("text", ["./model", "../model", "~nobody/model"])
def test_a_path_that_does_not_exist_is_no_hub_id(text: str) -> None:
    with pytest.raises(ValueError, match="is neither a file or folder, nor a hub id"):
        scorer_part(text, "reward", NOWHERE)


def test_latest_is_the_newest_finished_run(tmp_path: Path) -> None:
    finished_run(tmp_path / "b", 10)
    run = finished_run(tmp_path / "a", 20)
    assert source_of(scorer_part("latest", "reward", tmp_path)) == str(run)
    with pytest.raises(
        ValueError,
        match=r"^judges\['x'\]='latest': there is no finished reward run in nowhere; train one with RewardTrainer, or "
        r"give judges\['x'\]=<run folder>$",
    ):
        scorer_part("latest", "judges['x']", NOWHERE)


def test_a_folder_or_file_is_an_exported_reward_model_by_its_full_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run(tmp_path / "runs" / "a")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (run, str(run), "runs/a", Path("runs/a"), "~/runs/a"):
        assert source_of(scorer_part(name, "reward", NOWHERE)) == str(run)
    assert source_of(scorer_part("runs/a/export/reward.safetensors", "reward", NOWHERE)) == str(run / EXPORT)


def test_the_part_of_a_folder_builds_its_reward_model(tmp_path: Path) -> None:
    head = MLPHead(12, hidden=(8, 4)).eval()
    encoder = CLIPSource(f"local-dir:{tiny_clip(tmp_path / 'clip')}", device="cpu")
    write_export(tmp_path / "run" / "export", head, encoder)
    images, prompts = torch.rand(2, 3, 16, 16), ["a red circle", "two stars"]
    with torch.no_grad():
        expected = RewardModel(encoder.load(), head)(images, prompts)
    found = scorer_part(tmp_path / "run", "reward", NOWHERE)()
    torch.testing.assert_close(found(images, prompts), expected)


def test_a_hub_id_is_kept_as_it_is_written() -> None:
    assert source_of(scorer_part("some-one/my_reward.v2", "reward", NOWHERE)) == "some-one/my_reward.v2"


@pytest.mark.parametrize("name", ["", "nothing", "a/b/c", "/not/there", "some one/reward", Path("some-one/reward")])
def test_a_text_that_names_nothing_is_refused_with_the_names_that_there_are(name: str | Path) -> None:
    with pytest.raises(ValueError, match="is neither a file or folder, nor a hub id, nor one of the scorers") as told:
        scorer_part(name, "reward", NOWHERE)
    text = str(told.value)
    assert text.startswith(f"reward={str(name)!r} is neither")
    assert text.endswith("the scorers " + ", ".join(sorted(scorer_classes())))
