"""Commands inside the test's own process, and pictures of the shapes world to give them."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2ifb.config.command import run
from t2ifb.config.instantiate import Components
from t2ifb.data.datasets.imagereward_writer import Record, write_imagereward_db
from t2ifb.shapes.grammar import Scene
from t2ifb.shapes.renderer import render

PROMPT = "a red circle on a gray background"
OTHER = "a blue square on a gray background"
Run = Callable[..., int]


def runner(tasks: Mapping[str, Callable[[Components], None]], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function that runs a command with arguments in a folder and gives its exit status."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("T2IFB_DATA", str(folder / "data"))
    monkeypatch.setenv("COLUMNS", "160")

    def go(name: str, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        try:
            return run(name, tasks[name])
        except SystemExit as stop:
            return int(stop.code or 0)

    return go


def picture(prompt: str, seed: int = 0) -> Image.Image:
    """A picture of a prompt."""
    pixels = render(Scene.parse(prompt), np.random.default_rng(seed))
    return Image.fromarray((np.asarray(pixels) * 255).round().astype(np.uint8))


def write_pictures(folder: Path) -> list[str]:
    """Write a right picture of `PROMPT`, a wrong one and a right one; gives their names."""
    picture(PROMPT).save(folder / "right.png")
    picture(OTHER).save(folder / "wrong [bold].png")
    picture(PROMPT).resize((64, 64)).save(folder / "again.png")
    return ["right.png", "wrong [bold].png", "again.png"]


def write_database(folder: Path) -> Path:
    """Three pictures of one prompt in each ranking, the second one wrong."""
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
