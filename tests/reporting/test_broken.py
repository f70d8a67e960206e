"""Files of a run with any content give a page, which says what is wrong."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from t2ifb.reporting.page import make_page
from t2ifb.reporting.runs import read_run
from tests.reporting.parts import write_evaluations, write_reward_run, write_tuning_run


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def garbage(file: Path) -> None:
    file.write_bytes(np.random.default_rng(0).bytes(300))


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def other_json(file: Path) -> None:
    file.write_text(
        '{"figure8": {"a": 1, "b": {"c": [1]}}, "best_step": "x", "sentence": 3, "git_commit": 1, "hashes": 1}'
    )


def numbers(file: Path) -> None:
    file.write_text("[1, null, {}, [], NaN, 1e999]")


Harm = Callable[[Path], None]
HARMS = [cut, empty, garbage, folder, other_json, numbers]


def files_of(run: Path) -> list[Path]:
    return sorted(file for file in run.rglob("*") if file.is_file())


@pytest.mark.parametrize("harm", HARMS)
def test_every_file_at_once(tmp_path: Path, harm: Harm) -> None:
    runs = [write_tuning_run(tmp_path / "tuning"), write_reward_run(tmp_path / "reward")]
    evaluations = write_evaluations(tmp_path / "evaluations")
    runs += [evaluations / "table1", evaluations / "figure8"]
    whole = write_tuning_run(tmp_path / "whole")
    for run in runs:
        for file in files_of(run):
            harm(file)
    page = make_page([*runs, whole])
    assert page.runs == 5
    assert {"tuning", "reward"} <= page.notes.keys()
    assert "whole" not in page.notes


@pytest.mark.parametrize("harm", HARMS)
def test_each_file_alone(tmp_path: Path, harm: Harm) -> None:
    names = [file.relative_to(tmp_path / "0") for file in files_of(write_tuning_run(tmp_path / "0", noise=True))]
    for n, name in enumerate(names, 1):
        run = write_tuning_run(tmp_path / str(n), noise=True)
        harm(run / name)
        found = read_run(run)
        unseen = harm in (folder, other_json) or (harm is cut and name.suffix in (".png", ".yaml"))
        assert found.notes or unseen, name  # half a YAML file may be whole, half an image is seen when it is decoded
        assert found.val.step or name.name == "metrics.csv"
