"""Validation samples: a strip of images, one for each prompt, with its scores."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2ifb.reporting.files import Notes
from t2ifb.reporting.runs import read_run
from t2ifb.reporting.samples import MOST, Samples, read_samples
from tests.reporting.parts import PROMPTS, write_samples, write_tuning_run


def test_prompts_with_any_breaks_of_lines_are_read(tmp_path: Path) -> None:
    prompts = ["a\u2028b", "c\x85d", "e\x0cf", "g\nh"]
    run = read_run(write_tuning_run(tmp_path / "run", prompts=prompts))
    assert run.samples[0].prompts == tuple(prompts)
    assert run.notes == []


def read(folder: Path) -> tuple[list[Samples], list[str]]:
    notes = Notes(folder)
    return read_samples(folder, notes), notes.texts


def test_steps_come_in_their_order_with_the_scores_of_what_is_shown(tmp_path: Path) -> None:
    for step in (100, 0, 20):
        write_samples(tmp_path, step, PROMPTS, size=16, seed=step)
    found, notes = read(tmp_path)
    assert notes == []
    assert [samples.step for samples in found] == [0, 20, 100]
    last = found[-1]
    assert (last.prompts, last.size) == (PROMPTS, (16, 16))
    assert last.strip == tmp_path / "step_000100_strip.png"
    assert [scores["reward"] for scores in last.scores] == pytest.approx(
        [0.0, 0.1, 0.2]
    )  # of each prompt's first image
    assert [scores["kl"] for scores in last.scores] == [100, 100, 100]


def test_scores_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    write_samples(tmp_path, 0, PROMPTS[:1], size=8, seed=0)
    (tmp_path / "step_000000.csv").write_text("prompt,reward,kl\na,nan,1\n")
    ((only,), _) = read(tmp_path)
    assert only.scores == ({"kl": 1.0},)


def test_of_many_prompts_the_first_are_shown(tmp_path: Path) -> None:
    prompts = [f"prompt {number}" for number in range(MOST + 3)]
    write_samples(tmp_path, 0, prompts, size=8, seed=0)
    with Image.open(tmp_path / "step_000000_strip.png") as strip:
        strip.crop((0, 0, 8 * MOST, 8)).save(tmp_path / "step_000000_strip.png")
    ((only,), notes) = read(tmp_path)
    assert only.prompts == tuple(prompts[:MOST]) and only.size == (8, 8) and notes == []


def test_a_strip_of_another_width_is_noted(tmp_path: Path) -> None:
    write_samples(tmp_path, 0, PROMPTS, size=8, seed=0)
    Image.fromarray(np.zeros((8, 25, 3), np.uint8)).save(tmp_path / "step_000000_strip.png")
    found, notes = read(tmp_path)
    assert found == []
    assert notes == [
        "step_000000_strip.png: is 25 pixels wide, not a multiple of 3 images; this step is not in the gallery"
    ]


def test_other_files_and_a_missing_folder_are_no_samples(tmp_path: Path) -> None:
    for name in ("step_x.csv", "steps_000001.csv", "step_000001.txt", "step_000002.csv"):  # the last has no strip
        (tmp_path / name).write_text("prompt,reward\na,1\n")
    assert read(tmp_path) == ([], [])
    assert read(tmp_path / "nowhere") == ([], [])
