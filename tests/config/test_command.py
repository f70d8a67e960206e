"""The commands as a user runs them: exit status, one short message, nothing heavy for help."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT, Command

CONF = str(Path(__file__).parent / "conf")
TINY = ("tests.config.parts", "--config-dir", CONF, "+experiment=tiny")


def test_a_run_writes_into_its_folder(run_module: Command, tmp_path: Path) -> None:
    done = run_module(*TINY, "seed=3")
    assert done.returncode == 0, done.stderr
    (figures,) = tmp_path.glob("outputs/tiny/tiny/*/figures.json")
    assert json.loads(figures.read_text()) == {"lr": 0.2, "width": 3.0, "epochs": 7, "seed": 3, "resume": None}


def test_wrong_input_ends_with_2_and_makes_no_folder(run_module: Command, tmp_path: Path) -> None:
    done = run_module(*TINY, "sede=3", "+optimizer.lrr=1", "algorithm.batch_size=many")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("t2ifb.train: 3 errors\n")
    assert len(done.stderr.splitlines()) == 4
    for words in ("did you mean 'seed'", "did you mean 'lr'", "expected int, got 'many'"):
        assert words in done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("override", ["+alhpa=3", "+experimnt=refl"])
def test_a_key_outside_the_schema_is_refused_even_by_cfg(run_here: Command, override: str) -> None:
    done = run_here("t2ifb.train", override, "--cfg", "job")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("fails", "status", "message"),
    [("value:too bad", 1, "t2ifb.train: too bad"), ("os:disk full", 1, "t2ifb.train: disk full"), ("stop", 130, "")],
)
def test_errors_at_run_time(
    run_here: Command, run_module: Command, tmp_path: Path, fails: str, status: int, message: str
) -> None:
    (tmp_path / "fail.txt").write_text(fails)
    done = (run_module if fails == "stop" else run_here)(*TINY)
    assert done.returncode == status
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_traceback_is_there_for_who_asks_and_for_our_own_errors(run_here: Command, tmp_path: Path) -> None:
    (tmp_path / "fail.txt").write_text("value:too bad")
    assert "Traceback" in run_here(*TINY, T2IFB_TRACEBACK="1").stderr
    (tmp_path / "fail.txt").write_text("bug:oops")
    done = run_here(*TINY)
    assert done.returncode == 1
    assert "RuntimeError: oops" in done.stderr
    assert "Traceback" in done.stderr


def test_a_missing_file_ends_with_2_and_names_it(run_here: Command) -> None:
    done = run_here(*TINY, "dataset.source=nowhere")
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["t2ifb.train: there is no nowhere/data.json"]
    done = run_here("tests.config.parts", "--config-dir", "no/such/folder")
    assert done.returncode == 2
    assert "there is no no/such/folder" in done.stderr


def test_flags_may_stand_anywhere_and_a_sweep_runs_every_job(run_here: Command, tmp_path: Path) -> None:
    done = run_here(*TINY, "-m", "seed=1,2")
    assert done.returncode == 0, done.stderr
    found = {json.loads(file.read_text())["seed"] for file in tmp_path.glob("outputs/tiny/tiny/sweep/*/figures.json")}
    assert found == {1, 2}
    done = run_here(*TINY, "+sweep=tiny")
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("outputs/tiny/tiny/tiny/*/figures.json"))) == 2


def test_resume_goes_on_in_the_same_folder(run_here: Command, tmp_path: Path) -> None:
    (tmp_path / "stay_unfinished").touch()
    assert run_here(*TINY, "seed=3").returncode == 0
    (tmp_path / "stay_unfinished").unlink()
    (folder,) = tmp_path.glob("outputs/tiny/tiny/*")
    done = run_here("tests.config.parts", "--config-dir", CONF, f"resume={folder}")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("outputs/*/*/*")) == [folder]
    assert json.loads((folder / "figures.json").read_text())["resume"] == str(folder)
    done = run_here("tests.config.parts", "--config-dir", CONF, f"resume={folder}")
    assert done.returncode == 2
    assert "is finished" in done.stderr


def test_what_a_run_was_begun_with_is_not_overwritten(run_here: Command, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run_here(*TINY, "seed=3", f"hydra.run.dir={folder}").returncode == 0
    record = (folder / ".hydra" / "config.yaml").read_text()
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    for leave, arguments in ((None, ()), ("summary.json", ()), (None, (f"resume={tmp_path / 'other'}",))):
        if leave is not None:
            (folder / leave).unlink()
        done = run_here(*TINY, "seed=4", f"hydra.run.dir={folder}", *arguments)
        assert done.returncode == 2, arguments
        assert (folder / ".hydra" / "config.yaml").read_text() == record
    assert run_here(*TINY, "seed=3", f"hydra.run.dir={folder}", f"resume={folder}").returncode == 0


def test_what_hydra_knows_is_shown_for_arguments_too(run_here: Command) -> None:
    done = run_here(*TINY, "seed=3", "--info")
    assert done.returncode == 0, done.stderr
    assert "Defaults List" in done.stdout


HEAVY = ("torch", "lightning", "transformers", "diffusers", "open_clip", "wandb", "numpy", "matplotlib", "pandas")


ONE_BY_ONE = """
import importlib, sys
for command in ("train", "evaluate", "prepare", "score"):
    try:
        importlib.import_module(f"t2ifb.{command}").main()
    except SystemExit as stop:
        assert not stop.code
    print("imported after", command, *{name.partition(".")[0] for name in sys.modules})
"""


@pytest.mark.parametrize("arguments", [("--help",), ("--cfg", "job", "domain=sd15")])
def test_help_and_cfg_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", ONE_BY_ONE, *arguments]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    found = [line.split() for line in done.stdout.splitlines() if line.startswith("imported after")]
    assert len(found) == 4 and done.stdout.count("optimizer:") > 0
    for line in found:
        assert "hydra" in line and not set(line) & set(HEAVY)


def test_help_says_what_exists_and_shows_examples(run_here: Command) -> None:
    text = run_here("t2ifb.train", "--help").stdout
    for words in (
        "python -m t2ifb.train +experiment=reward_mlp",
        "domain: sd15, sd35, sdxl, shapes",
        "optimizer: adam, adamw",
    ):
        assert words in text
    assert "python -m t2ifb.evaluate +experiment=table1" in run_here("t2ifb.evaluate", "--help").stdout
    assert "python -m t2ifb.score" in run_here("t2ifb.score", "--help").stdout
    assert "python -m t2ifb.prepare" in run_here("t2ifb.prepare", "--help").stdout


def test_help_lists_the_options_of_a_further_folder(run_here: Command, tmp_path: Path) -> None:
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "mine.yaml").write_text("_target_: mine.Head\n")
    text = run_here("t2ifb.train", "--config-dir", str(tmp_path), "--help", "head=mine").stdout
    assert "linear, mine, mlp" in text
    assert "_target_: mine.Head" in text


def test_hydras_own_help_still_works(run_here: Command) -> None:
    done = run_here("t2ifb.train", "--hydra-help")
    assert done.returncode == 0 and "--multirun" in done.stdout


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "café \U0001f534".encode()),
        ({"PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"}, "café \\U0001f534".encode("latin-1")),
    ],
)
def test_arguments_are_utf8_and_what_cannot_be_shown_is_escaped(environment: dict[str, str], shown: bytes) -> None:
    code = "import sys; from t2ifb.config.command import speak_unicode; speak_unicode(); print(sys.argv[1])"
    command = [sys.executable, "-c", code + "; assert sys.argv[1] == 'caf\\xe9 \\U0001f534'", "café \U0001f534"]
    done = subprocess.run(command, cwd=CHECKOUT, env={**os.environ, **environment}, capture_output=True)
    assert (done.returncode, done.stdout.strip()) == (0, shown), done.stderr
