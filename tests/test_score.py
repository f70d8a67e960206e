"""`score` from its arguments to what it leaves behind, on small real data."""

import csv
import json
from pathlib import Path

import pytest
import torch

from t2ifb.data.datasets.imagereward_db import ImageRewardDB
from t2ifb.data.images import load_image
from t2ifb.score import score
from t2ifb.scorers import CLIPScore
from t2ifb.scorers.clip import CLIPSource
from tests.command_parts import OTHER, PROMPT, Run, runner, write_database, write_pictures
from tests.scorers.parts import tiny_clip


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner({"score": score}, tmp_path, monkeypatch)


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    return write_pictures(tmp_path)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_scores_of_files_on_the_screen(go: Run, images: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    quoted = ",".join(f'"{image}"' for image in images)
    assert go("score", "scorer=gold", f"prompt='{PROMPT}'", f"images=[{quoted}]") == 0
    lines = capsys.readouterr().out.splitlines()
    right, wrong, again = (next(line for line in lines if image in line) for image in images)
    assert "1.0000" in right
    assert "1.0000" in again
    assert "1.0000" not in wrong  # its name, with what looks like markup, is shown as it is


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_scores_of_pairs_in_a_file(go: Run, images: list[str], tmp_path: Path, suffix: str) -> None:
    rows = [(image, PROMPT) for image in images] + [(images[1], OTHER)]
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "prompt"), *rows])
    assert go("score", "scorer=gold", "pairs=pairs.csv", f"output=out/scores.{suffix}", "batch_size=2") == 0
    output = tmp_path / "out" / f"scores.{suffix}"
    found = read(output) if suffix == "csv" else json.loads(output.read_text())
    scores = [float(row["score"]) for row in found]
    assert [row["prompt"] for row in found] == [PROMPT, PROMPT, PROMPT, OTHER]
    assert scores[0] == scores[2] == pytest.approx(1, abs=0.01)
    assert scores[3] == pytest.approx(1, abs=0.01)
    assert scores[1] < 0.9


def test_scores_of_a_split_with_a_clip(go: Run, tmp_path: Path) -> None:
    database, clip = write_database(tmp_path / "db"), tiny_clip(tmp_path / "clip")
    arguments = ("dataset=imagereward_db", f"dataset.source={database}", f"encoder.model=local-dir:{clip}")
    assert go("score", *arguments, "split=test", "output=scores.csv") == 0
    rows = read(tmp_path / "scores.csv")
    images = [image for ranked in ImageRewardDB(database).rankings("test") for image in ranked.images]
    scorer = CLIPScore(CLIPSource(f"local-dir:{clip}", device="cpu"))
    expected = [float(scorer(load_image(image)[None], [PROMPT])) for image in images]
    assert len(set(expected)) > 1 and [float(row["score"]) for row in rows] == pytest.approx(expected, abs=1e-4)


def test_files_below_the_home_folder(
    go: Run, images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "right.png").rename(tmp_path / "home" / "right.png")
    (tmp_path / "home" / "pairs.csv").write_text(f"image,prompt\nright.png,{PROMPT}\n")
    for what in ('images=["~/right.png"]', 'pairs="~/pairs.csv"'):
        prompt = [f"prompt='{PROMPT}'"] if what.startswith("images") else []
        assert go("score", "scorer=gold", what, *prompt, 'output="~/scores.csv"') == 0
        assert len(read(tmp_path / "home" / "scores.csv")) == 1


def test_the_newest_reward_run_is_found_in_a_mix(
    go: Run, images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    mix = ("scorer=mix", "+scorer@scorer.scorers.a=reward_model", "+scorer@scorer.scorers.b=gold")
    assert go("score", *mix, "prompt=a", "images=[right.png]") == 2
    assert "scorer.scorers.a: there is no finished reward run in outputs/shapes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "what to score"),
        (("prompt=a",), "what to score"),
        (("prompt=a", "images=[right.png]", "split=test"), "what to score"),
        (("prompt=a", "images=[rigt.png]"), "there is no rigt.png ('rigt.png' is not in"),
        (("prompt=a", "images=[rigt.png]"), "did you mean 'right.png'"),
        (("pairs=pair.csv",), "there is no pair.csv"),
        (("prompt=a", "images=[right.png]", "output=scores.txt"), "has to end with .csv or .json"),
        (("prompt=a", "images=right.png"), "images"),
        (
            ("scorer=reward_model", "prompt=a", "images=[right.png]"),
            "there is no finished reward run in outputs/shapes",
        ),
        (("scorer=reward_model", "scorer.source=nowhere", "prompt=a", "images=[right.png]"), "nowhere"),
        (("split=test", "dataset=imagereward_db", "dataset.source=./nowhere"), "./nowhere"),
    ],
)
def test_wrong_wishes_end_with_2(
    go: Run, images: list[str], arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go("score", *arguments) == 2
    message = capsys.readouterr().err
    assert words in message
    assert "Traceback" not in message


def test_a_table_without_its_columns(go: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pairs.csv").write_text("image,text\na.png,b\n")
    assert go("score", "pairs=pairs.csv") == 2
    assert "line 1: no column prompt; found image, text" in capsys.readouterr().err


def test_a_batch_has_at_least_one_image(go: Run, images: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert go("score", "prompt=a", "images=[right.png]", "batch_size=-1") != 0
    assert "batch_size=-1 must be at least 1" in capsys.readouterr().err


def test_a_score_that_is_no_number_is_an_error(
    go: Run, images: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(CLIPScore, "forward", lambda self, images, prompts: torch.full((len(prompts),), torch.nan))
    assert go("score", "prompt=a", "images=[right.png]") != 0
    assert "1 of 1 scores are NaN or infinite" in capsys.readouterr().err
