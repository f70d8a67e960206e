"""`python -m t2ifb.annotate`, from a folder of images to what people prefer."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2ifb.annotate import _address
from t2ifb.data.datasets.own_rankings import OwnRankings
from t2ifb.shapes.grammar import scenes
from tests.annotation.parts import write_generated
from tests.conftest import Command


def shapes_images(folder: Path, prompts: int = 3) -> Path:
    """Images of 64 x 64 pixels for prompts of the embedded domain: gray ones and noise."""
    folder.mkdir()
    index = []
    for number, scene in enumerate(scenes("train", prompts, seed=0)):
        for model, deviation in (("base", 80), ("tuned", 0)):
            pixels = np.random.default_rng(number).normal(128, deviation, (64, 64, 3)).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}_{model}.png")
        images = {model: [f"{number}_{model}.png"] for model in ("base", "tuned")}
        index.append({"prompt": scene.prompt, "images": images})
    (folder / "prompts.json").write_text(json.dumps(index))
    return folder


def test_simulated_annotators_answer_and_the_results_are_printed(run_here: Command, tmp_path: Path) -> None:
    folder = shapes_images(tmp_path / "images")
    arguments = (f"source={folder}", "simulate=true", "overlap=1", "mode=compare")
    done = run_here("t2ifb.annotate", *arguments)
    assert done.returncode == 0, done.stderr
    assert "6 answers of 2 simulated annotators" in done.stdout
    assert "answers of simulated 0: 3 ranks" in done.stdout
    assert "tuned preferred to base: " in done.stdout
    assert f"dataset.source={folder / 'annotations'}" in done.stdout
    assert json.loads((folder / "annotations/results.json").read_text())["counts"]["simulated 1"] == {"ranks": 3}
    rankings = OwnRankings(folder / "annotations", shares={"train": 1.0}).rankings("train")
    assert len(rankings) == 3
    again = run_here("t2ifb.annotate", *arguments)
    assert "0 answers of 2 simulated annotators" in again.stdout  # nothing is left to answer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mode=guess",), "mode=guess: expected rank or compare"),
        (("source=nowhere",), "nowhere does not exist"),
        (("order=disagreement",), "order=disagreement: give .scorer@reward=ensemble"),
        (("simulate=true", "annotators=0"), "annotators=0: expected at least 1"),
        (("host=192.0.2.1",), "host=192.0.2.1 port=8765: .*; give another port"),
    ],
)
def test_wrong_arguments_are_one_message(
    run_here: Command, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    write_generated(tmp_path / "images", 1)
    done = run_here("t2ifb.annotate", "source=images", *arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert re.search(message, done.stderr)


@pytest.mark.parametrize(
    ("host", "address"),
    [("0.0.0.0", "http://127.0.0.1:80"), ("::", "http://[::1]:80"), ("fe80::2", "http://[fe80::2]:80")],
)
def test_the_printed_address_can_be_opened(host: str, address: str) -> None:
    assert _address(host, 80) == address


@pytest.mark.slow
def test_a_reward_is_trained_on_what_was_annotated(run_here: Command, tmp_path: Path) -> None:
    folder = shapes_images(tmp_path / "images", 40)
    assert run_here("t2ifb.annotate", f"source={folder}", "simulate=true").returncode == 0
    done = run_here(
        "t2ifb.train", "+experiment=reward_mlp", "dataset=own_rankings", f"dataset.source={folder / 'annotations'}",
        "algorithm.epochs=1", "logger=none", "hydra.run.dir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/summary.json").is_file()
