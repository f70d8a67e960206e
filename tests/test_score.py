"""`prepare` and `score` from their arguments to what they leave behind, on small real data."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2ifb.config.command import run
from t2ifb.data.datasets.imagereward_writer import Record, write_imagereward_db
from t2ifb.prepare import prepare
from t2ifb.score import score
from t2ifb.shapes.grammar import Scene
from t2ifb.shapes.renderer import render
from tests.scorers.parts import tiny_clip

PROMPT = "a red circle on a gray background"
OTHER = "a blue square on a gray background"
Run = Callable[..., int]


def picture(prompt: str, seed: int = 0) -> Image.Image:
    pixels = render(Scene.parse(prompt), np.random.default_rng(seed))
    return Image.fromarray((np.asarray(pixels) * 255).round().astype(np.uint8))


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T2IFB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "160")

    def go(name: str, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        try:
            return run(name, {"prepare": prepare, "score": score}[name])
        except SystemExit as stop:
            return int(stop.code or 0)

    return go


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    picture(PROMPT).save(tmp_path / "right.png")
    picture(OTHER).save(tmp_path / "wrong [bold].png")
    picture(PROMPT).resize((64, 64)).save(tmp_path / "again.png")
    return ["right.png", "wrong [bold].png", "again.png"]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    folder = tmp_path / "db"
    for split, count in (("train", 3), ("validation", 1), ("test", 2)):
        records = [
            Record(
                f"{split}{i}", PROMPT, "single", picture((PROMPT, OTHER, PROMPT)[k], k + 9 * i), (1, 2, 1)[k], 7, 7, 7
            )
            for i in range(count)
            for k in range(3)
        ]
        write_imagereward_db(folder, split, records)
    return folder


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


def test_scores_of_a_split_with_a_clip(go: Run, database: Path, tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path / "clip")
    arguments = ("dataset=imagereward_db", f"dataset.source={database}", f"encoder.model=local-dir:{clip}")
    assert go("score", *arguments, "split=test", "output=scores.csv") == 0
    rows = read(tmp_path / "scores.csv")
    assert len(rows) == 6
    assert all(-1 <= float(row["score"]) <= 1 for row in rows)


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


def test_prepare_counts_and_encodes_once(
    go: Run, database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tiny_clip(tmp_path / "clip")
    arguments = (
        "domain=sd15",
        f"dataset.source={database}",
        f"encoder.model=local-dir:{clip}",
        "encoder.pretrained=null",
    )
    assert go("prepare", *arguments) == 0
    out = capsys.readouterr().out
    counts = {line.split()[1]: line.replace("│", " ").split()[1:] for line in out.splitlines() if line.startswith("│")}
    assert counts["train"] == ["3", "9", "6", "3", "0"]
    assert counts["test"] == ["2", "6", "4", "2", "0"]
    assert "10 encoded, 0 reused" in out  # 9 distinct images, 1 prompt: the splits share theirs
    assert go("prepare", *arguments) == 0
    assert "0 encoded, 10 reused" in capsys.readouterr().out
    assert not (tmp_path / "outputs").exists()


def test_prompts_that_are_cut_off_are_said(
    go: Run, tmp_path: Path, images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(image, text, 1) for text in ("a red circle", "a red circle " * 400) for image in images[:2]]
    with (tmp_path / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "prompt", "rank"), *rows])
    clip = f"encoder.model=local-dir:{tiny_clip(tmp_path / 'clip')}"
    prepare = ("domain=sd15", "dataset=own_rankings", "dataset.source=.", "splits=[train]", "encoder.pretrained=null")
    for _ in range(2):  # also when nothing is encoded again
        assert go("prepare", *prepare, clip) == 0
    assert go("score", "scorer=clip_score", clip, "pairs=train.csv", "output=scores.csv") == 0
    output = capsys.readouterr().out
    said = [line for line in output.splitlines() if "cut off" in line]
    for line, name in zip(said, ("encoder", "encoder", "scorer"), strict=True):
        start = f"1 of 2 prompts are longer than the context of the {name} and are cut off, the first: a red circle"
        assert start in line
        assert len(line) < 240
    assert "nothing can be learned from train: all images of a prompt have the same rank" in output


def test_prepare_says_what_is_missing(go: Run, database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go("prepare", "domain=sd15", f"dataset.source={database}", "splits=[compositional]", "embed=false") != 0
    assert "metadata-compositional.parquet" in capsys.readouterr().err
