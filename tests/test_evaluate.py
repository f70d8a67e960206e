"""`evaluate` from its arguments to what it leaves behind."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from t2ifb.config.command import run
from t2ifb.evaluate import evaluate
from t2ifb.scorers.clip import CLIPEncoder, CLIPSource
from t2ifb.scorers.heads import MLPHead
from t2ifb.scorers.reward_model import RewardModel
from t2ifb.utils.reward_runs import newest_reward_run
from tests.data.parts import RANKS, make_split
from tests.scorers.parts import tiny_clip

Go = Callable[..., int]


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Go:
    """Run it on rankings in a JSON file with a tiny CLIP; the ground truth does not know these prompts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T2IFB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "100")
    entries = [
        {"id": r.prompt_id, "prompt": r.prompt, "generations": [p.name for p in r.images], "ranking": list(r.ranks)}
        for r in make_split(tmp_path, "test", RANKS)
    ]
    (tmp_path / "test.json").write_text(json.dumps(entries))
    clip = tiny_clip(tmp_path / "clip")
    fixed = ["+experiment=table1", "dataset=ranking_files", "+dataset.files.test=test.json", "build=null", "device=cpu"]

    def go(*arguments: str, gold: bool = False) -> int:
        shipped = [f"~scorers.{name}" for name in ("aesthetic_score", "blip_score", "image_reward")]
        truth = ["+scorer@scorers.gold=gold"] if gold else []
        given = [*fixed, f"encoder.model=local-dir:{clip}", *shipped, *truth, *arguments]
        monkeypatch.setattr(sys, "argv", ["evaluate", *given])
        try:
            return run("evaluate", evaluate)
        except SystemExit as stop:
            return int(stop.code or 0)

    return go


def finished(folder: Path, clip: Path, seed: int = 0) -> Path:
    """A finished reward run, as far as others read it."""
    encoder = CLIPEncoder(CLIPSource(f"local-dir:{clip}"))
    RewardModel(encoder, MLPHead(12, [4 + seed], [])).save_pretrained(folder / "export")
    (folder / "summary.json").write_text("{}")
    return folder


def summary(folder: Path) -> dict[str, dict[str, float]]:
    newest = max(folder.glob("outputs/shapes/table1/*/summary.json"))
    return dict(json.loads(newest.read_text()))


def test_without_a_reward_run_the_table_goes_without_one_and_says_so(
    go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go() == 0
    output = capsys.readouterr()
    (line,) = [line for line in output.err.splitlines() if line.startswith("left out")]
    assert "there is no finished reward run in outputs/shapes; make one with `python -m t2ifb.train" in line
    assert "CLIP Score" in output.out
    assert list(summary(tmp_path)["table"]) == ["random", "CLIP Score"]


def test_a_reward_run_that_is_asked_for_by_name_has_to_be_there(go: Go, capsys: pytest.CaptureFixture[str]) -> None:
    assert go("scorers.reward_model.source=latest") == 2
    assert "scorers.reward_model: there is no finished reward run" in capsys.readouterr().err


def test_the_newest_finished_reward_run_is_taken_and_recorded(go: Go, tmp_path: Path) -> None:
    runs = tmp_path / "outputs" / "shapes"
    finished(runs / "reward_mlp" / "2026-01-01_10", tmp_path / "clip")
    newest = finished(runs / "custom" / "2026-01-02_10", tmp_path / "clip", seed=1)
    finished(runs / "reward_mlp" / "2026-01-03_10", tmp_path / "clip", seed=2).joinpath("summary.json").unlink()
    (runs / "table1" / "2026-01-04_10").mkdir(parents=True)
    (runs / "table1" / "2026-01-04_10" / "summary.json").write_text("{}")
    assert newest_reward_run(Path("outputs/shapes")) == newest
    assert newest_reward_run(Path("outputs/sd15")) is None
    mine = runs / "reward_mlp" / "2026-01-01_10"
    assert go("+scorer@scorers.mine=reward_model", f"scorers.mine.source={mine}") == 0
    found = summary(tmp_path)
    assert found["sources"] == {"reward_model": str(newest), "mine": str(mine)}
    assert list(found["table"]) == ["random", "CLIP Score", "reward model", "mine"]


def test_what_a_run_was_trained_on_takes_no_name_of_another(go: Go, tmp_path: Path) -> None:
    folders = [str(finished(tmp_path / name, tmp_path / "clip", seed)) for seed, name in enumerate(("a", "b", "mine"))]
    target = "t2ifb.scorers.reward_model.RewardModel.from_pretrained"
    members = {folder: {"_target_": target, "source": folder} for folder in folders[:2]}
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "reward.json").write_text(json.dumps({"reward": {"scorers": members}}))
    mine = ("+scorer@scorers.reward_2=reward_model", f"scorers.reward_2.source={folders[2]}", "~scorers.reward_model")
    assert go("run=tuned", *mine) == 0
    assert summary(tmp_path)["sources"] == dict(zip(("reward", "reward_3", "reward_2"), folders, strict=True))


@pytest.mark.parametrize("record", [".hydra/config.yaml", "settings.json"])
def test_a_run_of_another_base_model_or_other_sampling_is_said(
    go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str], record: str
) -> None:
    file = tmp_path / "tuned" / record
    file.parent.mkdir(parents=True)
    file.write_text('{"diffusion": {"source": "elsewhere"}, "sampling": {"guidance_scale": 4.0}}')
    assert go("run=tuned", "~scorers.reward_model") == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tuned: when it was tuned, ")]
    assert "diffusion.source was elsewhere, now it is" in line
    assert "sampling.guidance_scale was 4.0, now it is 1.0" in line


def test_the_second_call_builds_no_network(go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(tmp_path / "outputs" / "shapes" / "reward_mlp" / "1", tmp_path / "clip")
    assert go() == 0
    first = summary(tmp_path)

    def refuses(self: CLIPSource) -> CLIPEncoder:
        raise AssertionError("a network was built")

    monkeypatch.setattr(CLIPSource, "load", refuses)
    assert go() == 0
    assert len(list(tmp_path.glob("outputs/shapes/table1/*/summary.json"))) == 2
    assert summary(tmp_path)["table"] == first["table"]


def test_all_that_is_missing_is_told_at_once(go: Go, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = ("+scorer@scorers.mine=reward_model", "scorers.mine.source=./nowhere")
    clip = ("+scorer@scorers.other=clip_score", "scorers.other.source=./neither", "+scorers.other.pretrained=openai")
    assert go(*mine, *clip, gold=True) == 2
    message = capsys.readouterr().err
    assert "t2ifb.evaluate: 3 errors" in message
    for words in (
        "scorers.mine: ./nowhere does not exist",
        "scorers.other: ",
        "scorers.gold: ",  # it knows only its own prompts
        "(without it: ~scorers.gold)",
    ):
        assert words in message
    assert "Traceback" not in message
    assert not list(tmp_path.glob("data/scores/*/scores.npy"))
    assert not list(tmp_path.glob("outputs/*/*/*/summary.json"))
