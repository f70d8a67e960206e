"""A sweep survives: failures are written down, what is finished is not done again, and the end tells what was found."""

import gc
import json
import os
import sys
import time
import weakref
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning import seed_everything

from t2ifb.config.compose import compose_all
from t2ifb.config.errors import ConfigError
from t2ifb.config.paths import job_folder
from t2ifb.config.sweeps import FAILED, REFUSED, objectives, one_job, resolve_job
from t2ifb.training.run_folder import RunFolder
from tests.config.test_command import TINY
from tests.conftest import Command


def test_a_failed_job_is_recorded_the_others_go_on_and_starting_again_does_what_is_left(
    run_here: Command, tmp_path: Path
) -> None:
    sweep = [*TINY, "-m", "seed=1,2,3"]
    (tmp_path / "fail.txt").write_text("value:seed 2 is unlucky")
    (tmp_path / "fail_seed.txt").write_text("2")
    done = run_here(*sweep)
    assert done.returncode == 1
    folder = tmp_path / "outputs" / "tiny" / "tiny" / "sweep"
    assert {json.loads(file.read_text())["seed"] for file in folder.glob("*/figures.json")} == {1, 3}
    (failure,) = folder.glob("*/failed.json")
    assert json.loads(failure.read_text()) == {"error": "seed 2 is unlucky", "kind": "ValueError"}
    assert "1 of 3 runs are not finished" in done.stdout and "failed: seed 2 is unlucky" in done.stdout
    (tmp_path / "fail.txt").unlink()
    finished = {file: file.stat().st_mtime_ns for file in folder.glob("*/figures.json")}
    done = run_here(*sweep)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished before") == 2
    assert not list(folder.glob("*/failed.json"))
    assert all(file.stat().st_mtime_ns == written for file, written in finished.items())
    assert len(list(folder.glob("*/figures.json"))) == 3
    assert "| " in (folder / "sweep.md").read_text()


@pytest.mark.slow
def test_a_job_that_another_process_is_at_has_not_failed(run_here: Command, tmp_path: Path) -> None:
    (tmp_path / "stay_unfinished").touch()
    assert run_here(*TINY, "-m", "seed=1,2").returncode == 1
    (tmp_path / "stay_unfinished").unlink()
    (live,) = (
        file.parent
        for file in (tmp_path / "outputs" / "tiny" / "tiny" / "sweep").glob("*/figures.json")
        if json.loads(file.read_text())["seed"] == 2
    )
    with RunFolder(live).held():
        done = run_here(*TINY, "-m", "seed=1,2")
    assert done.returncode == 1
    assert "Another process uses" in done.stderr and "1 of 2 runs are not finished" in done.stdout
    assert not list(live.parent.glob("*/failed.json"))


def test_a_job_leaves_no_failure_seed_or_object_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        def __init__(self) -> None:
            self.itself = self

    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)
    gc.disable()
    try:
        for fails in (False, True):
            with pytest.raises(ValueError) if fails else nullcontext(), one_job(tmp_path):
                (tmp_path / FAILED).write_text("of another process")
                seed_everything(3, workers=True, verbose=False)
                left = weakref.ref(Model())
                if fails:
                    raise ValueError("unlucky")
            assert left() is None
            assert os.environ["PL_GLOBAL_SEED"] == "7" and "PL_SEED_WORKERS" not in os.environ
            assert (tmp_path / FAILED).exists() == fails
    finally:
        gc.enable()


@pytest.mark.slow
def test_a_job_is_not_taken_for_one_with_other_settings(run_here: Command, tmp_path: Path) -> None:
    (tmp_path / "stay_unfinished").touch()
    run_here(*TINY, "-m", "seed=1")
    (tmp_path / "stay_unfinished").unlink()
    sweep = tmp_path / "outputs" / "tiny" / "tiny" / "sweep"
    for file in sweep.glob("*/.hydra/overrides.yaml"):
        os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 60))  # of an earlier sweep
    assert run_here(*TINY, "-m", "seed=2").returncode == 0
    (finished,), records = sweep.glob("*/summary.json"), list(sweep.glob("*/.hydra/begun_with.yaml"))
    for record in records:
        record.write_text(record.read_text().replace("lr: ", "lr: 7 # "))
    then = {record.with_name("config.yaml"): record.read_text() for record in records}
    done = run_here(*TINY, "-m", "seed=1,2")
    assert done.returncode != 0
    assert done.stderr.count("was begun with other settings: optimizer.lr was 7, now it is") >= 2
    assert "1 of 2 runs are not finished" in done.stdout  # what is finished stays finished
    table = (sweep / "sweep.csv").read_text()
    assert table.count("failed: ") == table.count(",finished with other settings") == 1
    assert {file.parent for file in sweep.glob("*/failed.json")}.isdisjoint({finished.parent})
    assert {file: file.read_text() for file in then} == then  # nobody may read the refused settings later
    (unfinished,) = (record.parent for record in records if record.parent.parent != finished.parent)
    (unfinished / "config.yaml").write_text(then[unfinished / "config.yaml"].replace("lr: 7 # ", "lr: "))
    done = run_here(*TINY[:-1], f"resume={unfinished.parent}")  # killed before Hydra's record was put right
    assert done.returncode == 2 and "optimizer.lr was 7, now it is 0.2" in done.stderr


def test_a_job_is_known_by_its_arguments_but_for_those_of_the_logger() -> None:
    folder = job_folder(["+experiment=refl", "seed=1"])
    assert folder == "b7628f07a2"
    assert folder == job_folder(
        ["seed=1", "logger=none", "+experiment=refl", "logger.mode=offline", "++logger.tags=[a]"]
    )
    assert (
        len({folder, job_folder(["+experiment=refl", "seed=2"]), job_folder(["+experiment=refl", "+loggers=1"])}) == 3
    )


def test_a_sweep_over_experiments_and_domains_has_a_table_for_each(run_here: Command, tmp_path: Path) -> None:
    composed = compose_all("train", ["+experiment=refl,draft", "domain=shapes,sd15", "seed=0,1"], multirun=True)
    folders = {
        f"outputs/{domain}/{experiment}/sweep" for domain in ("shapes", "sd15") for experiment in ("refl", "draft")
    }
    assert {each.config.hydra.sweep.dir for each in composed} == folders
    assert run_here(*TINY[:-1], "-m", "+experiment=tiny,other").returncode == 0
    for experiment in ("tiny", "other"):
        assert (tmp_path / "outputs" / "tiny" / experiment / "sweep" / "sweep.csv").read_text().count("\n") == 2


def test_the_record_of_a_failed_job_says_that_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(finish=lambda exit_code: ended.append(exit_code)))
    with one_job(tmp_path):
        pass
    with pytest.raises(ValueError, match="unlucky"), one_job(tmp_path):
        raise ValueError("unlucky")
    assert ended == [1] and "unlucky" in (tmp_path / "failed.json").read_text()


def test_a_sweeper_is_told_the_figures_that_it_goes_by() -> None:
    figures = {"validation": {"judges": 0.5, "kl": 3.0}, "seed": 1}
    assert objectives(figures, []) is None
    assert objectives(figures, ["validation/judges"]) == 0.5
    assert objectives(figures, ["validation/judges", "validation/kl"]) == (0.5, 3.0)
    with pytest.raises(ValueError, match="has no figure validation/gold"):
        objectives(figures, ["validation/gold"])


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "ray", "submitit_local"])
def test_jobs_run_in_other_processes(run_module: Command, tmp_path: Path, launcher: str) -> None:
    pytest.importorskip({"submitit_local": "submitit"}.get(launcher, launcher))
    done = run_module(*TINY, "-m", "seed=1,2", f"hydra/launcher={launcher}")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / "tiny" / "tiny" / "sweep"
    assert {json.loads(file.read_text())["seed"] for file in folder.glob("*/figures.json")} == {1, 2}
    (tmp_path / "fail.txt").write_text("value:unlucky")
    (tmp_path / "fail_seed.txt").write_text("4")
    done = run_module(*TINY, "-m", "seed=2,3,4", f"hydra/launcher={launcher}")
    assert done.returncode == 1
    assert {json.loads(file.read_text())["seed"] for file in folder.glob("*/figures.json")} == {1, 2, 3}
    assert "1 of 3 runs are not finished" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_a_job_that_takes_the_sweep_with_it_is_said(run_module: Command, tmp_path: Path, launcher: str) -> None:
    pytest.importorskip({"submitit_local": "submitit"}.get(launcher, launcher))
    (tmp_path / "fail.txt").write_text("kill:")
    (tmp_path / "fail_seed.txt").write_text("1")
    done = run_module(*TINY, "-m", "seed=1,2", f"hydra/launcher={launcher}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "a job was lost; run the same command again to continue with the others" in done.stderr
    (tmp_path / "fail.txt").unlink()
    folder = tmp_path / "outputs" / "tiny" / "tiny" / "sweep"
    while launcher == "submitit_local" and not list(folder.glob("*/summary.json")):
        time.sleep(0.2)  # the other job goes on
    assert run_module(*TINY, "-m", "seed=1,2", f"hydra/launcher={launcher}").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("several", ["trainer=ddp", "+trainer.num_nodes=2"])
def test_several_processes_are_no_job_of_a_sweep(run_here: Command, tmp_path: Path, several: str) -> None:
    done = run_here("t2ifb.train", "+experiment=reward_mlp", "-m", "seed=1", several, "logger=none")
    assert done.returncode == 2
    assert "a job of a sweep is one process" in done.stderr
    (failure,) = tmp_path.glob("outputs/shapes/reward_mlp/sweep/*/failed.json")
    assert "one process" in failure.read_text()


def test_a_finished_job_is_marked_while_its_settings_are_others(tmp_path: Path) -> None:
    (tmp_path / "summary.json").touch()
    resolve_job(tmp_path, {"lr": 1})
    assert not (tmp_path / REFUSED).exists()
    with pytest.raises(ConfigError, match="lr was 1, now it is 2"):
        resolve_job(tmp_path, {"lr": 2})
    assert json.loads((tmp_path / REFUSED).read_text()) == {"changed": ["lr was 1, now it is 2"]}
    resolve_job(tmp_path, {"lr": 1})
    assert not (tmp_path / REFUSED).exists()
