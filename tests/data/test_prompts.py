import json
from pathlib import Path

import pytest

from t2ifb.data.prompts import PromptFile, RankingPrompts
from tests.conftest import real_data
from tests.data.parts import FolderDataset


def test_text_has_one_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n  a dög  \na cat\n", encoding="utf-8")
    assert PromptFile(path).prompts() == ["a cat", "a dög", "a cat"]


def test_json_has_texts_or_objects(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([{"text": "a cat", "image": "1"}, "a dog"]))
    assert PromptFile(path).prompts() == ["a cat", "a dog"]


def test_faults_are_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(["a cat", " ", {"prompt": "a dog"}]))
    with pytest.raises(ValueError, match="2 faults in 2 of 3 entries") as raised:
        PromptFile(path).prompts()
    assert "entry 1: empty prompt" in str(raised.value)
    assert "entry 2: expected a text" in str(raised.value)
    assert PromptFile(path, on_fault="skip").prompts() == ["a cat"]
    assert "dropped 2 of 3 entries" in caplog.text


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent.txt does not exist"):
        PromptFile(tmp_path / "absent.txt").prompts()
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"empty.txt has no prompts"):
        PromptFile(tmp_path / "empty.txt").prompts()


def test_the_real_refl_prompts() -> None:
    prompts = PromptFile(real_data("imagereward_refl_prompts.json")).prompts()
    assert len(prompts) == 10_000
    assert len(set(prompts)) == 9_803


def test_prompts_of_rankings(dataset: FolderDataset) -> None:
    prompts = RankingPrompts(dataset, "validation").prompts()
    assert prompts == [ranking.prompt for ranking in dataset.rankings("validation")]
