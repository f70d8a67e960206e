"""The judges' weights are found once, without a download, and recorded."""

import json
from pathlib import Path
from typing import Any

import pytest

from t2ifb.config.judge_weights import resolve_judge_weights
from t2ifb.evaluation.selection import weights_on_rankings
from tests.data.parts import FolderDataset
from tests.evaluation.parts import weights
from tests.evaluation.test_selection import grays


class FakeParts:
    """The values that are asked for and settled, and a data set of gray images."""

    def __init__(self, folder: Path, **values: Any) -> None:
        self.dataset = FolderDataset({"validation": [grays(folder / "images", "a", [200, 100, 50])]})
        self.built: list[str] = []
        judges = {
            name: {"_target_": "tests.evaluation.parts.Brightness", "weights": str(weights(folder / name, factor))}
            for name, factor in {"bright": 1.0, "dark": -1.0}.items()
        }
        self.values = {"algorithm": {"judge_weights": None}, "judges": judges, "data_folder": str(folder / "data")}
        self.values |= {"trainer": {"accelerator": "cpu"}, "prompts": {"validation": {"_target_": "x.ScenePrompts"}}}
        self.values |= values

    def value(self, key: str) -> Any:
        return self.values[key]

    def written(self) -> dict[str, Any]:
        return {"dataset": {"_target_": "tests.FolderDataset"}} | self.values

    def build(self, key: str) -> Any:
        self.built.append(key)
        return self.dataset

    def settle(self, key: str, value: Any) -> None:
        self.values[key] = value


def settled(parts: FakeParts, folder: Path) -> Any:
    resolve_judge_weights(parts, folder / "judge_weights.json", weights_on_rankings)  # type: ignore[arg-type]
    return parts.values.get("algorithm.judge_weights")


def test_they_are_found_on_the_validation_rankings_and_kept_for_a_resumed_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = FakeParts(tmp_path)
    assert settled(parts, tmp_path) == {"bright": 1.0, "dark": 0.0}
    record = json.loads((tmp_path / "judge_weights.json").read_text())
    assert record["accuracies"] == {"bright": 1.0, "dark": 0.0}
    parts.dataset.splits = {}  # gone when the run is resumed
    assert settled(parts, tmp_path) == {"bright": 1.0, "dark": 0.0}
    assert parts.built == ["dataset"] and "equally" not in capsys.readouterr().err
    del parts.values["judges"]["dark"]  # a new run in the same folder
    assert settled(parts, tmp_path) == {"bright": 1.0}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "this machine has no validation rankings"),
        ({"prompts": {"validation": {"_target_": "t2ifb.data.prompts.PromptFile"}}}, "are a file of your own"),
    ],
)
def test_judges_count_equally_without_rankings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: dict[str, Any], reason: str
) -> None:
    parts = FakeParts(tmp_path, **values)
    parts.dataset.splits = {}
    for _ in range(2):
        assert settled(parts, tmp_path) == {"bright": 1.0, "dark": 1.0}
    assert capsys.readouterr().err.count(reason) == 1  # said once
    assert reason in json.loads((tmp_path / "judge_weights.json").read_text())["equal_because"]


def test_rankings_that_cannot_be_scored_do_not_stop_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = FakeParts(tmp_path)
    (tmp_path / "images" / "a100.png").write_bytes(b"no image")
    assert settled(parts, tmp_path) == {"bright": 1.0, "dark": 1.0}
    assert "the judges count equally: the validation rankings cannot be scored: " in capsys.readouterr().err


def test_given_weights_and_a_single_judge_need_no_rankings(tmp_path: Path) -> None:
    assert settled(FakeParts(tmp_path, algorithm={"judge_weights": {"bright": 1.0}}), tmp_path) is None
    assert settled(FakeParts(tmp_path, judges={}), tmp_path) is None
    one = FakeParts(tmp_path, judges={"bright": {"_target_": "x.Unknown"}})
    assert settled(one, tmp_path) == {"bright": 1.0} and not one.built
