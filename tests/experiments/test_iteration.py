"""The study of rounds: equal amounts, its comparison by hand, and the whole way with the smallest settings."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.iteration import study
from experiments.runs import Run
from tests.conftest import CHECKOUT
from tests.shapes.parts import write_database
from tests.test_train import ROUNDS


def test_both_variants_have_the_same_rankings_and_updates() -> None:
    totals = set()
    for arguments in study.VARIANTS.values():
        settings = dict(argument.split("=") for argument in arguments)
        rounds, ranked = int(settings["iteration.rounds"]), int(settings["iteration.prompts_per_round"])
        updates = float(settings["algorithm.epochs"]) * study.TRAINING_PROMPTS / study.BATCH * study.POOL
        totals.add((rounds * ranked, rounds * round(updates)))
    assert totals == {(300, 144)}


def result(base: list[float], exported: list[float]) -> dict[str, Any]:
    figures = [{"reward_accuracy": 0.7}]
    return {"base": {"gold": base}, "exported": {"gold": exported}, "rounds": figures, "network_evaluations": 5}


def test_seeds_that_both_variants_have_are_compared_by_prompt(tmp_path: Path) -> None:
    base = [0.5, 0.6, 0.7]
    found = {
        "rounds": {seed: result(base, [0.8, 0.9, 1.0]) for seed in (0, 1, 2)},
        "at once": {seed: result(base, [0.7, 0.8, 0.9]) for seed in (0, 2)},
    }
    compared = study.compare(found)
    assert compared["seeds"] == [0, 2]
    ends = [compared["rounds_minus_at_once"]["gold"]["over_seeds"][end] for end in ("mean", "low", "high")]
    assert ends == pytest.approx([0.1, 0.1, 0.1])
    assert compared["gain"]["at once"]["gold"]["seeds"][1]["mean"] == pytest.approx(0.2)
    study.draw(compared, tmp_path / "result.png")
    assert (tmp_path / "result.png").stat().st_size > 5_000
    assert study.compare({"rounds": found["rounds"], "at once": {}}) == {"seeds": []}


@pytest.mark.slow
def test_the_study_goes_the_whole_way_and_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = (*ROUNDS, f"dataset.source={write_database(tmp_path / 'db')}", "iteration.dataset_weight=0")
    runs = {"rounds": ("iteration.rounds=2",), "at once": ("iteration.rounds=1", "iteration.prompts_per_round=6")}

    def run_of(variant: str, seed: int) -> Run:
        return Run(tmp_path / f"{variant.replace(' ', '_')}{seed}", (*few, *runs[variant], f"seed={seed}"))

    for name, value in {"HERE": tmp_path, "RESULTS": tmp_path / "results", "run_of": run_of}.items():
        monkeypatch.setattr(study, name, value)
    for name, value in {"PROMPTS": 2, "IMAGES": 1, "STEPS": 2}.items():
        monkeypatch.setattr(study, name, value)
    monkeypatch.setenv("T2IFB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["study", "--seeds", "0", "--jobs", "1"])
    study.main()
    files = sorted((tmp_path / "results").iterdir())
    assert [file.name for file in files] == ["at_once_0.json", "rounds_0.json"]
    compared = json.loads((tmp_path / "result.json").read_text())
    assert compared["seeds"] == [0]
    assert np.isfinite(compared["rounds_minus_at_once"]["gold"]["over_seeds"]["mean"])
    assert len(json.loads(files[1].read_text())["exported"]["gold"]) == 2
    monkeypatch.setattr(Run, "train", lambda *_: pytest.fail("a finished run was repeated"))
    study.main()
