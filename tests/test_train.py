"""`prepare` and `train` on each of the other data sets, from their arguments to a finished run."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from t2ifb.config.command import run
from t2ifb.config.instantiate import Components
from t2ifb.data.datasets.imagereward_writer import write_imagereward_db
from t2ifb.data.prompts import hash_fraction
from t2ifb.prepare import prepare
from t2ifb.train import iterate, train
from tests.conftest import Command
from tests.data.datasets import test_hpdv2, test_imagereward_db, test_own_rankings, test_pickapic
from tests.scorers.parts import tiny_clip
from tests.shapes.parts import write_database

Run = Callable[..., int]


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("T2IFB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "160")
    clip = tiny_clip(tmp_path / "clip")

    def go(name: str, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", [name, f"encoder.model=local-dir:{clip}", *arguments])
        try:
            return run(name, {"prepare": prepare, "train": train}[name])
        except SystemExit as stop:
            return int(stop.code or 0)

    return go


def pickapic(folder: Path) -> list[str]:
    return ["dataset=pickapic", f"dataset.source={test_pickapic.write_set(folder)}"]


def hpdv2(folder: Path) -> list[str]:
    return ["dataset=hpdv2", f"dataset.source={test_hpdv2.write_set(folder)}", "dataset.validation_share=0.25"]


def own(folder: Path) -> list[str]:
    test_own_rankings.write(folder / "rankings.csv", test_own_rankings.rows(40))
    return ["dataset=own_rankings", f"dataset.source={folder}"]


def mixture(folder: Path) -> list[str]:
    test_pickapic.write_set(folder / "pickapic")
    for split in ("train", "validation", "test"):
        write_imagereward_db(folder / "db", split, test_imagereward_db.records())
    sets = ["+dataset@dataset.datasets.a=pickapic", "+dataset@dataset.datasets.b=imagereward_db"]
    sources = [f"dataset.datasets.a.source={folder / 'pickapic'}", f"dataset.datasets.b.source={folder / 'db'}"]
    return [
        "dataset=mixture",
        *sets,
        *sources,
        "+dataset.weights.a=0.5",
        "dataset.held_out=[]",
        "dataset.evaluated=[b]",
    ]


@pytest.mark.parametrize(
    ("make", "counts", "comparisons"),
    [
        (pickapic, ["7", "14", "6", "1", "0"], 6),
        (hpdv2, None, 44),
        (own, None, 3 * sum(hash_fraction(row["prompt"], 0) < 0.8 for row in test_own_rankings.rows(40, 1))),
        (mixture, ["11", "25", "15", "3", "0"], 15),
    ],
)
def test_prepare_and_train(
    go: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], list[str]],
    counts: list[str] | None,
    comparisons: int,
) -> None:
    arguments = make(tmp_path / "set")
    assert go("prepare", *arguments) == 0
    printed = capsys.readouterr()
    lines = (line.replace("│", " ").split() for line in printed.out.splitlines() if line.startswith("│"))
    table = {line[0]: line[1:] for line in lines}
    assert list(table) == ["train", "validation", "test"]
    assert counts is None or table["train"] == counts
    assert int(table["train"][2]) == comparisons
    assert go("train", "+experiment=reward_mlp", *arguments, "logger=none", "algorithm.epochs=2", "baselines={}") == 0
    (summary,) = (tmp_path / "outputs").rglob("summary.json")
    assert json.loads(summary.read_text())["data"]["comparisons"] == comparisons


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dataset=pickapic"], "python -m t2ifb.prepare domain=sd15 dataset=pickapic"),
        (["dataset=hpdv2"], "python -m t2ifb.prepare domain=sd15 dataset=hpdv2"),
        (["dataset=own_rankings", "dataset.source=nowhere"], "Expected a table nowhere/<split>.csv"),
        (["dataset=mixture"], "(on the command line: +dataset@dataset.datasets.<name>=…)"),
    ],
)
def test_what_is_missing_is_said(go: Run, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert go("train", "+experiment=reward_mlp", *arguments, "logger=none") != 0
    message = capsys.readouterr().err
    assert words in message
    assert "Traceback" not in message


ROUNDS = (
    "+experiment=iterate", "build=null", "logger=none", "trainer.accelerator=cpu", "iteration.prompts_per_round=3",
    "iteration.images_per_prompt=2", "iteration.reward_trainer.epochs=1", "sampling.num_inference_steps=2",
    "rollout.num_inference_steps=2", "algorithm.algorithm.steps=null", "algorithm.algorithm.updates=1",
    "algorithm.algorithm.group_size=2", "algorithm.algorithm.best=1", "algorithm.algorithm.pairs_per_update=2",
    "algorithm.batch_size=2", "algorithm.epochs=0.1", "algorithm.validation_prompts=2", "algorithm.guidance_scales=[]",
    "algorithm.best_of=1", "prompts.train.count=20", "prompts.validation.count=2", "prompts.test.count=2",
)  # fmt: skip
"""Rounds of one update."""


def test_rounds_need_one_process(run_here: Command) -> None:
    done = run_here("t2ifb.train", *ROUNDS, "trainer.devices=2")
    assert done.returncode == 2
    assert "one process on one device" in done.stderr


def test_rounds_record_the_whole_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def build(key: str, **arguments: Any) -> Any:
        given.update(arguments)
        return SimpleNamespace(splits=[], fit=dict)

    monkeypatch.setattr("t2ifb.train._judges", lambda *_: {})
    resolved = {"domain": "shapes", "trainer": {}, "seed": 1, "resume": None}
    more = {"build": build, "unfinished": lambda *_, **__: None, "run_folder": tmp_path}
    iterate(cast(Components, SimpleNamespace(value=resolved.get, resolved=lambda: resolved, **more)))
    assert given["config"] == resolved


@pytest.mark.slow
def test_rounds_stop_for_the_page_and_continue_with_resume(run_here: Command, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    source = f"dataset.source={write_database(tmp_path / 'db')}"
    done = run_here("t2ifb.train", *ROUNDS, source, "iteration.rounds=2", "iteration.annotators=null")
    for number in (1, 2):
        assert done.returncode == 0
        assert "3 of 3 prompts have no answer yet" in done.stdout
        asked, resumed = (line.split() for line in done.stdout.splitlines() if line.startswith("  python -m"))
        assert (asked[:3], resumed[:3]) == (["python", "-m", "t2ifb.annotate"], ["python", "-m", "t2ifb.train"])
        assert asked[3].endswith(f"round_{number:02d}/rankings")
        again = run_here("t2ifb.train", resumed[3])
        assert (again.returncode, again.stdout.count("3 of 3 prompts")) == (0, 1)
        assert run_here("t2ifb.annotate", asked[3], "simulate=true", "annotators=1").returncode == 0
        done = run_here("t2ifb.train", resumed[3])
    assert done.returncode == 0
    assert "all rounds on one page" in done.stdout
    (folder,) = (tmp_path / "outputs" / "shapes" / "iterate").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert [figures["rankings"] for figures in summary["rounds"]] == [3, 6]
    assert (folder / "report.html").is_file()
    record = json.loads((folder / "round_02" / "tuning" / "settings.json").read_text())
    assert record["algorithm"]["start_from"] == str(folder / "round_01" / "tuning")
    assert (folder / "export" / "pytorch_lora_weights.safetensors").is_file()
    finished = run_here("t2ifb.train", resumed[3])
    assert finished.returncode == 2
    assert "is finished" in finished.stderr
