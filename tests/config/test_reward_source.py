"""What a run is trained on is found once, recorded, and is no judge of itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from t2ifb.config.errors import ConfigError
from t2ifb.config.reward_source import find_latest, judges_of, resolve_judges, resolve_reward
from t2ifb.utils.reward_runs import EXPORT

RUN = Path("outputs/shapes/reward_mlp")


class FakeParts:
    """The values that are asked for and settled; no component is built."""

    def __init__(self, **values: Any) -> None:
        self.values = {"domain": "shapes", "resume": None} | values
        self.arguments: list[str] = []

    def value(self, key: str) -> Any:
        return self.values[key]

    def settle(self, key: str, value: Any) -> None:
        self.values[key] = value


def finished_run(name: str, content: bytes = b"weights") -> str:
    folder = RUN / name
    (folder / EXPORT).parent.mkdir(parents=True)
    (folder / EXPORT).write_bytes(content)
    (folder / "summary.json").write_text("{}")
    return str(folder.absolute())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def settled(**values: Any) -> dict[str, Any]:
    parts = FakeParts(**values)
    resolve_reward(parts, Path())  # type: ignore[arg-type]
    return parts.values


def test_the_newest_run_is_found_once() -> None:
    first = finished_run("2026-01-01")
    wish = {"_target_": "x", "source": "latest"}
    assert settled(reward=wish)["reward"]["source"] == first
    finished_run("2026-01-02")
    assert settled(reward=wish)["reward"]["source"] == first
    assert len(json.loads(Path("reward.json").read_text())["hashes"]) == 1


def test_a_reward_that_changed_is_refused_on_resume() -> None:
    folder = finished_run("2026-01-01")
    settled(reward={"_target_": "x", "source": "latest"})
    (Path(folder) / EXPORT).write_bytes(b"other")
    for wrong in (r"2026-01-01 is not what the run was started with", r"2026-01-01 \(gone\) is not what"):
        with pytest.raises(ConfigError, match=wrong):
            settled(reward={"_target_": "x", "source": "latest"})
        shutil.rmtree(folder, ignore_errors=True)


def test_another_reward_in_a_folder_that_was_begun_is_refused() -> None:
    first, second = finished_run("2026-01-01"), finished_run("2026-01-02", b"others")
    begun: dict[str, Any] = {"_target_": "x", "source": first, "k": 1.0}
    settled(reward=begun)
    same = {**begun, "source": str(Path(first).relative_to(Path.cwd()))}
    for wish in (begun, same, {**begun, "source": "latest"}):
        assert settled(reward=wish)["reward"] == begun
    for changed, words in (
        ({**begun, "source": second}, rf"reward\.source was {first}, now it is {second}.*, or delete reward\.json"),
        ({**begun, "source": "latest", "k": 2.0}, r"reward\.k was 1\.0, now it is 2\.0"),
        ({"_target_": "mix", "scorers": {"a": begun}}, r"reward\._target_ was x, now it is mix"),
    ):
        with pytest.raises(ConfigError, match=words):
            settled(reward=changed)
        assert settled(reward=changed, resume="auto")["reward"] == begun  # `continue_run` has compared the settings


def test_a_reward_that_was_an_object_is_another_one() -> None:
    Path("reward.json").write_text('{"reward": null, "hashes": {"reward": "a"}}')
    with pytest.raises(ConfigError, match="was begun with another reward"):
        settled(reward={"_target_": "x"})


def test_judges_are_found_once_also_in_a_mix() -> None:
    first = finished_run("2026-01-01")
    judges = {"rm": {"source": "latest"}, "mix": {"scorers": {"a": {"source": "latest"}}}, "other": None}
    found = {"rm": {"source": first}, "mix": {"scorers": {"a": {"source": first}}}, "other": None}
    for _ in range(2):  # the second time stands for a run that goes on
        parts = FakeParts(judges=judges)
        resolve_judges(parts, Path())  # type: ignore[arg-type]
        assert parts.values["judges"] == found
        shutil.copytree(first, RUN / "2026-01-02", dirs_exist_ok=True)


def test_a_judge_without_a_run_is_said() -> None:
    parts = FakeParts(judges={"mix": {"scorers": {"a": {"source": "latest"}}}})
    with pytest.raises(
        ConfigError, match=r"judges\.mix\.scorers\.a: there is no .* by judges\.mix\.scorers\.a\.source="
    ):
        resolve_judges(parts, Path())  # type: ignore[arg-type]


def test_members_of_a_mix_are_found_too() -> None:
    folder = finished_run("2026-01-01")
    mix = {"_target_": "mix", "scorers": {"a": {"source": "latest"}, "b": {"source": "other"}}, "weights": {"a": 2}}
    found = settled(reward=mix)["reward"]
    assert found["scorers"] == {"a": {"source": folder}, "b": {"source": "other"}}
    assert found["weights"] == {"a": 2}


def test_no_run_is_said_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"reward: there is no finished reward run .* reward.source=<run folder>"):
        settled(reward={"_target_": "x", "source": "latest"})
    assert not Path("reward.json").exists()


def test_a_judge_that_is_the_reward_is_found_without_building_it() -> None:
    clip, blip = {"_target_": "clip", "source": "c"}, {"_target_": "blip", "source": "b"}
    assert judges_of(dict(clip), {"clip": clip, "blip": blip, "none": None}) == {"blip": blip}


def test_jobs_of_a_sweep_go_by_one_reward_and_say_when_it_is_not_the_newest_or_gone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("t2ifb.config.reward_source.in_sweep", lambda: True)

    def job(name: str) -> str:
        parts = FakeParts(reward={"_target_": "x", "source": "latest"})
        Path("sweep", name).mkdir(parents=True)
        resolve_reward(parts, Path("sweep", name))  # type: ignore[arg-type]
        return str(parts.values["reward"]["source"])

    first = finished_run("2026-01-01")
    assert job("a") == first and not capsys.readouterr().err
    second = finished_run("2026-01-02")
    assert job("b") == first and f"though {second} is newer" in capsys.readouterr().err
    shutil.rmtree(first)
    with pytest.raises(ConfigError, match=r"latest\.json\), which is gone; put it back"):
        job("c")


def test_latest_is_found_for_every_scorer_that_wants_it(tmp_path: Path) -> None:
    scorers = {"a": {"source": "latest"}, "b": {"source": "x"}, "c": {"source": "latest", "more": 1}}
    assert find_latest(scorers, "scorers", "d", [], tmp_path)[0] == {"b": {"source": "x"}}
    with pytest.raises(ConfigError, match=r"scorers\.c: there is no finished reward run"):
        find_latest(scorers, "scorers", "d", ["+scorers.c.source=latest"], tmp_path)
    export = tmp_path / "d" / "e" / "1" / "export"
    export.mkdir(parents=True)
    for file in (export / "reward.safetensors", export.parent / "summary.json"):
        file.touch()
    run = str(export.parent)
    assert find_latest(scorers, "scorers", "d", [], tmp_path) == (
        {"a": {"source": run}, "b": {"source": "x"}, "c": {"source": run, "more": 1}}, []
    )  # fmt: skip
