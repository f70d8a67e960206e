"""What a run is trained on is found from its shorthand, written down, and is no judge of the run."""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch import nn

from t2ifb.finetuning.trained_on import held_out, judge_parts, members_of, record_reward, reward_part
from t2ifb.scorers import ImageReward, RewardModel
from t2ifb.scorers.mix import Mix
from t2ifb.utils.fingerprints import weights_hash
from t2ifb.utils.reward_runs import EXPORT, RECORD, read_record, write_record
from tests.finetuning.tuning_worlds import Darkness, Redness, make_tuning


class Weighted(nn.Module):
    """A scorer with a weight and a setting."""

    def __init__(self, weight: float = 1.0, part: str = "all") -> None:
        super().__init__()
        self.weight, self.part = nn.Parameter(torch.tensor(weight)), part

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return self.weight * images.mean((1, 2, 3))


def finished_run(run: Path, content: bytes = b"weights") -> str:
    (run / EXPORT).parent.mkdir(parents=True)
    (run / EXPORT).write_bytes(content)
    (run / "summary.json").write_text("{}")
    return str(run)


def source_of(part: Any) -> str:
    assert isinstance(part, partial) and part.func == RewardModel.from_pretrained
    return str(part.keywords["source"])


def test_a_scorer_is_taken_as_it_is_and_a_shorthand_is_not_built(tmp_path: Path) -> None:
    scorer, unbuilt = Darkness(), partial(Darkness)
    assert reward_part(scorer, tmp_path / "run", False) is scorer
    assert reward_part(unbuilt, tmp_path / "run", False) is unbuilt
    found = reward_part("image_reward", tmp_path / "run", False)
    assert isinstance(found, partial) and found.func == ImageReward.from_pretrained
    assert source_of(reward_part(tmp_path, tmp_path / "run", False)) == str(tmp_path)


def test_the_latest_reward_is_looked_for_beside_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=f"^reward='latest': there is no finished reward run in {tmp_path};"):
        reward_part("latest", tmp_path / "run", False)
    run = finished_run(tmp_path / "reward")
    finished_run(tmp_path / "run" / "below" / "reward")
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "run", Path("run")):
        assert source_of(reward_part("latest", folder, False)) == run


def test_a_resumed_run_keeps_the_reward_that_was_the_latest(tmp_path: Path) -> None:
    first, run = finished_run(tmp_path / "a"), tmp_path / "run"
    run.mkdir()
    assert source_of(reward_part("latest", run, True)) == first  # it was stopped before its record
    write_record(run / RECORD, {"_target_": "x", "source": first}, {})
    newer = finished_run(tmp_path / "b")
    assert source_of(reward_part("latest", run, True)) == first
    assert source_of(reward_part("latest", run, False)) == newer
    assert source_of(reward_part(newer, run, True)) == newer  # asked for by its name
    write_record(run / RECORD, None, {})  # it was an object
    assert source_of(reward_part("latest", run, True)) == newer


def test_judges_are_found_by_name_and_none_is_left_out(tmp_path: Path) -> None:
    run, scorer = finished_run(tmp_path / "reward"), Darkness()
    judges = {"dark": scorer, "not": None, "new": "latest", "people": "ImageReward", "folder": Path(run)}
    found = judge_parts(judges, tmp_path / "run")  # type: ignore[arg-type]
    assert list(found) == ["dark", "new", "people", "folder"] and found["dark"] is scorer
    assert source_of(found["new"]) == source_of(found["folder"]) == run
    assert judge_parts(None, tmp_path) == judge_parts({}, tmp_path) == {}
    with pytest.raises(ValueError, match=r"^judges\['mine'\]='nothing' is neither a file or folder"):
        judge_parts({"dark": scorer, "mine": "nothing"}, tmp_path / "run")


def test_a_mix_is_its_scorers_and_another_reward_is_one() -> None:
    dark, red = Darkness(), Redness()
    assert members_of(Mix({"a": dark, "b": red})) == {"a": dark, "b": red}
    assert members_of(dark) == {"reward": dark}


def test_what_a_run_is_trained_on_is_no_judge_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    for reward in (Weighted(), Mix({"a": Weighted(), "b": Redness()})):
        tuning = make_tuning(reward=reward, judges={"dark": Darkness(), "mine": Weighted()})
        assert tuning.judges.keys() == tuning.judge_weights.keys() == {"dark"}
        assert "judges['mine'] is what the run is trained on, and so no judge" in capsys.readouterr().err
    assert make_tuning(reward=Weighted(), judges={"mine": Weighted(2.0)}).judges.keys() == {"mine"}


def test_a_judge_is_the_reward_if_class_weights_and_settings_are_equal() -> None:
    class Other(Weighted):
        pass

    different = {"class": Other(), "weight": Weighted(2.0), "setting": Weighted(part="one")}
    same = {"itself": (reward := Weighted()), "equal": Weighted(), "unbuilt": partial(Weighted, 1.0)}
    found = held_out(same | different, reward)
    assert found == different
    unbuilt = held_out({"two": partial(Weighted, weight=2.0)}, reward)["two"]
    assert isinstance(unbuilt, Weighted) and unbuilt.weight.item() == 2


def test_scorers_without_weights_are_told_apart_by_what_they_are() -> None:
    """A plan has no weights to compare."""
    with torch.device("meta"):
        one, other = Weighted(), Weighted()
    assert held_out({"one": one, "other": other}, one) == {"other": other}


def test_only_the_first_process_says_which_judge_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert held_out({"mine": Weighted()}, Weighted()) == {}
    assert capsys.readouterr() == ("", "")


def test_a_reward_from_a_folder_is_written_down_with_the_hash_of_its_weights(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "reward")
    part = partial(RewardModel.from_pretrained, source=run)
    record_reward(tmp_path / RECORD, part, Darkness(), False)
    assert json.loads((tmp_path / RECORD).read_text()) == {
        "reward": {"_target_": "t2ifb.scorers.reward_model.RewardModel.from_pretrained", "source": run},
        "hashes": {run: hashlib.sha256(b"weights").hexdigest()},
    }


@pytest.mark.parametrize("unbuilt", [False, True])
def test_a_reward_that_cannot_be_written_down_counts_by_its_weights(tmp_path: Path, unbuilt: bool) -> None:
    scorers = {"a": Weighted(), "b": Weighted(2.0)}
    mix = Mix(scorers)
    record_reward(tmp_path / RECORD, partial(Mix, scorers) if unbuilt else mix, mix, False)
    hashes = {name: weights_hash(scorer) for name, scorer in scorers.items()}
    assert read_record(tmp_path / RECORD) == {"reward": None, "hashes": hashes}
    assert len(set(hashes.values())) == 2


def test_a_resumed_run_with_other_weights_is_refused_and_a_new_one_is_recorded(tmp_path: Path) -> None:
    file = tmp_path / RECORD
    record_reward(file, Weighted(), Weighted(), True)
    begun = file.read_bytes()
    record_reward(file, Weighted(), Weighted(), True)
    with pytest.raises(ValueError, match="^reward: reward is not what the run was started with; start a new run$"):
        record_reward(file, Weighted(2.0), Weighted(2.0), True)
    assert file.read_bytes() == begun
    record_reward(file, Weighted(2.0), Weighted(2.0), False)
    assert read_record(file)["hashes"] == {"reward": weights_hash(Weighted(2.0))}


def test_a_folder_whose_weights_changed_or_went_is_refused_on_resume(tmp_path: Path) -> None:
    run, file = finished_run(tmp_path / "reward"), tmp_path / RECORD
    part = partial(RewardModel.from_pretrained, source=run)
    record_reward(file, part, Darkness(), False)
    record_reward(file, part, Darkness(), True)
    (Path(run) / EXPORT).write_bytes(b"others")
    with pytest.raises(ValueError, match=f"^reward: {run} is not what the run was started with"):
        record_reward(file, part, Darkness(), True)
    (Path(run) / EXPORT).unlink()
    with pytest.raises(ValueError, match=f"^reward: {run} \\(gone\\) is not what the run was started with"):
        record_reward(file, part, Darkness(), True)
