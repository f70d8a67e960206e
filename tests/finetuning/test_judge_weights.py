"""The judges' weights are found once, without a download, and recorded."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from t2ifb.data.prompts import PromptFile, PromptList, PromptSplits
from t2ifb.evaluation.lazy import build
from t2ifb.finetuning.judge_weights import weights_of_run
from tests.data.parts import FolderDataset
from tests.evaluation.parts import Brightness, weights
from tests.evaluation.test_selection import grays
from tests.finetuning.tuning_worlds import Darkness, Redness, make_tuning, tune


class RankingPrompts:
    """Prompts that the rankings are about."""

    def prompts(self) -> list[str]:
        return ["a blue square on a gray background"]


class World:
    """Judges that like bright and dark images, and rankings in which brighter is better."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dataset = FolderDataset({"validation": [grays(folder / "images", "a", [200, 100, 50])]})
        factors = {"bright": 1.0, "dark": -1.0}
        self.judges: dict[str, Any] = {
            name: partial(Brightness, weights=str(weights(folder / name, factor))) for name, factor in factors.items()
        }
        self.validation: Any = RankingPrompts()

    def weights(self, resume: bool = False) -> dict[str, float]:
        cache = self.folder / "scores"
        return weights_of_run(self.folder, self.judges, self.validation, self.dataset, cache, "cpu", resume)


def test_they_are_found_on_the_validation_rankings_and_kept_for_a_resumed_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path)
    assert world.weights() == {"bright": 1.0, "dark": 0.0}
    record = json.loads((tmp_path / "judge_weights.json").read_text())
    assert record["accuracies"] == {"bright": 1.0, "dark": 0.0}
    world.dataset.splits = {}  # gone when the run is resumed
    assert world.weights(resume=True) == {"bright": 1.0, "dark": 0.0}
    assert "equally" not in capsys.readouterr().err
    assert world.weights() == {"bright": 1.0, "dark": 1.0}  # a new run
    del world.judges["dark"]
    assert world.weights(resume=True) == {"bright": 1.0}


def test_built_judges_have_the_same_weights(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.judges = {name: build(judge) for name, judge in world.judges.items()}
    assert world.weights() == {"bright": 1.0, "dark": 0.0}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, "this machine has no validation rankings"),
        ({"dataset": None}, "no rankings are given"),
        ({"validation": PromptFile("validation.txt")}, "are a file or list of your own"),
        ({"validation": PromptList(["a cat"])}, "are a file or list of your own"),
    ],
)
def test_judges_count_equally_without_rankings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], reason: str
) -> None:
    world = World(tmp_path)
    world.dataset.splits = {}
    vars(world).update(change)
    for resume in (False, True):
        assert world.weights(resume) == {"bright": 1.0, "dark": 1.0}
    assert capsys.readouterr().err.count(reason) == 1  # said once
    assert reason in json.loads((tmp_path / "judge_weights.json").read_text())["equal_because"]


def test_rankings_that_cannot_be_scored_do_not_stop_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(tmp_path)
    (tmp_path / "images" / "a100.png").write_bytes(b"no image")
    assert world.weights() == {"bright": 1.0, "dark": 1.0}
    assert "the judges count equally: the validation rankings cannot be scored: " in capsys.readouterr().err


def test_given_weights_and_a_single_judge_need_no_rankings(tmp_path: Path) -> None:
    assert not make_tuning(judges={}).find_weights
    assert not make_tuning(judge_weights={"redness": 0.5}).find_weights
    world = World(tmp_path)
    world.judges, world.dataset = {"bright": partial(open)}, partial(open)  # type: ignore[assignment]
    assert world.weights() == {"bright": 1.0}


def test_a_run_weighs_its_judges_by_the_rankings(tmp_path: Path) -> None:
    judges = World(tmp_path).judges | {"redness": Redness()}
    usual = make_tuning().prompts
    changes: dict[str, Any] = {"rankings": World(tmp_path).dataset, "epochs": 0.1, "reward": Darkness()}
    changes["prompts"] = PromptSplits(usual.train, RankingPrompts(), usual.test)
    summary = tune(make_tuning(judges=judges, **changes), tmp_path / "run")
    assert summary["judge_weights"] == {"bright": 1.0, "dark": 0.0, "redness": 0.0}
