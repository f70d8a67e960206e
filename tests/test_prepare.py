"""`prepare` from its arguments to what it leaves behind, on small real data."""

import csv
from pathlib import Path

import pytest

from t2ifb.prepare import prepare
from t2ifb.score import score
from tests.command_parts import Run, runner, write_database, write_pictures
from tests.scorers.parts import tiny_clip


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner({"prepare": prepare, "score": score}, tmp_path, monkeypatch)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return write_database(tmp_path / "db")


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


def test_prompts_that_are_cut_off_are_said(go: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_pictures(tmp_path)
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
