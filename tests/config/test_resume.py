"""Which run goes on, and whether it is still the same run."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from t2ifb.config.compose import compose_all
from t2ifb.config.errors import ConfigError
from t2ifb.config.resume import check_unused, continue_run, record_settings, wished_run
from t2ifb.utils.overrides import argument

CONF = str(Path(__file__).parent / "conf")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def start(name: str, *overrides: str, finished: bool = False) -> Path:
    """Leave what Hydra leaves of a run."""
    folder = Path("outputs/tiny/tiny", name).absolute()
    (folder / ".hydra").mkdir(parents=True)
    config = compose_all("train", ["+experiment=tiny", *overrides], config_dir=CONF)[0].config
    saved = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    OmegaConf.save(saved, folder / ".hydra" / "config.yaml")
    OmegaConf.save(["+experiment=tiny", *overrides], folder / ".hydra" / "overrides.yaml")
    if finished:
        (folder / "summary.json").touch()
    return folder


def resume(wish: str | Path, *overrides: str) -> list[str]:
    return continue_run("train", str(wish), [argument("resume", wish), *overrides], CONF)


def test_the_folder_alone_is_enough() -> None:
    folder = start("1", "seed=3")
    assert resume(folder) == [
        "+experiment=tiny",
        "seed=3",
        "hydra.mode=RUN",
        f"resume={folder}",
        f"hydra.run.dir={folder}",
    ]


def test_other_values_are_refused_by_name() -> None:
    folder = start("1", "seed=3")
    with pytest.raises(ConfigError) as caught:
        resume(folder, "seed=4", "optimizer.lr=9")
    assert len(caught.value.errors) == 2
    assert any("seed was 3, now it is 4" in error for error in caught.value.errors)
    assert any("optimizer.lr was 0.2, now it is 9" in error for error in caught.value.errors)
    assert resume(folder, "seed=3")
    assert resume(folder, "logger=none")  # changes no weight


def test_the_devices_may_be_others() -> None:
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    folder = start("1", "trainer=default", "trainer.accelerator=auto")
    for wish in (folder, "auto"):
        own = () if wish == folder else ("+experiment=tiny",)
        arguments = resume(wish, *own, *two)
        assert f"hydra.run.dir={folder}" in arguments and "trainer.accelerator=auto" not in arguments
    shared = start("2", *two, "trainer.precision=bf16-mixed")
    arguments = resume(shared, "trainer=default")
    assert "trainer.precision=bf16-mixed" in arguments and not set(two) & set(arguments)
    with pytest.raises(ConfigError, match="trainer.precision was bf16-mixed, now it is 32-true"):
        resume(shared, "trainer=default", "trainer.precision=32-true")


def test_a_continued_run_can_be_continued_again_and_so_can_a_job_of_a_sweep() -> None:
    folder = start("1", "seed=3")
    OmegaConf.save(["+experiment=tiny", "seed=3", f"resume={folder}"], folder / ".hydra" / "overrides.yaml")
    assert resume(folder).count(f"resume={folder}") == 1
    job = start("2_0", "optimizer.lr=0.1")
    OmegaConf.save(["optimizer.lr=0.1", "+experiment=tiny", "+sweep=tiny"], job / ".hydra" / "overrides.yaml")
    arguments = resume(job)
    assert len(compose_all("train", arguments, config_dir=CONF)) == 1


def test_what_cannot_be_resumed_is_told() -> None:
    finished = start("1", finished=True)
    of_python = finished.parent / "python"
    of_python.mkdir()
    (of_python / "settings.json").write_text("{}")
    for wish, words in (
        (finished, "is finished"),
        (of_python, "was started from Python; continue it there, with resume=True"),
        (finished.parent / "2", "there is no"),
        (finished.parent, "is not a run folder"),
        (finished.parent.with_name("tinny"), "did you mean 'tiny'"),
    ):
        with pytest.raises(ConfigError, match=words):
            resume(wish)


def test_auto_takes_the_newest_unfinished_run_with_these_values(capsys: pytest.CaptureFixture[str]) -> None:
    start("1", "seed=3")
    newer = start("2", "seed=3")
    start("3", "seed=4")
    start("4", "seed=3", finished=True)
    assert f"hydra.run.dir={newer}" in resume("auto", "+experiment=tiny", "seed=3")
    assert resume("auto", "+experiment=tiny", "seed=5") == ["+experiment=tiny", "seed=5", "resume=null"]
    assert "in the unfinished 3 seed was 4, now it is 5" in capsys.readouterr().err
    older = start("0", "seed=3")
    (older / "checkpoints").mkdir()
    (older / "checkpoints" / "last.ckpt").touch()
    assert f"hydra.run.dir={older}" in resume("auto", "+experiment=tiny", "seed=3")  # the newer one has done nothing


def test_a_sweep_is_not_resumed() -> None:
    start("1")
    with pytest.raises(ConfigError, match="one run at a time"):
        resume("auto", "+experiment=tiny", "+sweep=tiny")


def test_wished_run() -> None:
    assert wished_run(["seed=1"]) is None
    assert wished_run(["resume=null"]) is None
    assert wished_run(["resume=auto", "not readable"]) == "auto"
    assert wished_run(['resume="/a b/c"']) == "/a b/c"
    assert wished_run(["resume=auto", "hydra.run.dir=x"]) == "auto"


def begun(folder: Path, *overrides: str) -> None:
    """Write down what a run was begun with, as `train` does."""
    settings = compose_all("train", ["+experiment=tiny", *overrides], config_dir=CONF)[0].config
    plain = OmegaConf.to_container(settings)
    assert isinstance(plain, dict)
    record_settings(folder, {str(key): value for key, value in plain.items() if key != "hydra"}, resume=True)


@pytest.mark.parametrize("wish", ["auto", "here", "~/here"])
def test_a_run_that_goes_on_in_a_given_folder_keeps_its_values(
    wish: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    given = ("+experiment=tiny", "hydra.run.dir=here", "seed=3")
    assert resume(wish, *given)[1:] == [*given]  # nothing is begun there
    begun(Path("here"), "seed=3")
    begun(Path("here"), "seed=4")  # a continuation leaves the record
    assert resume(wish, *given, "logger=none")[1:] == [*given, "logger=none"]
    with pytest.raises(ConfigError, match=r"optimizer.lr was 0\.2, now it is 9"):
        resume(wish, *given, "optimizer.lr=9")
    (tmp_path / "here" / "summary.json").touch()
    with pytest.raises(ConfigError, match="is finished"):
        resume(wish, *given)


def test_a_run_does_not_go_on_in_the_folder_of_another() -> None:
    folder = start("1")
    with pytest.raises(ConfigError, match=r"resume=.*/1 and hydra.run.dir=.*/other are two folders"):
        resume(folder, "+experiment=tiny", "hydra.run.dir=other")


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ("summary.json", "is finished; give another folder"),
        ("checkpoints/last.ckpt", r"unfinished run in it; continue it with resume=\S*run, or"),
        ("round_01/x", "unfinished run in it"),
    ],
)
def test_a_new_run_does_not_overwrite_the_record_of_another(tmp_path: Path, result: str, words: str) -> None:
    folder = tmp_path / "run"
    check_unused(folder)
    (folder / result).parent.mkdir(parents=True)
    (folder / result).touch()
    with pytest.raises(ConfigError, match=words):
        check_unused(folder)


def test_the_plan_of_a_run_that_goes_on_has_keys_of_its_own() -> None:
    """What is planned has a memory; the run has none."""
    folder = Path("run").absolute()
    (folder / ".hydra").mkdir(parents=True)
    overrides = ["+experiment=refl", "seed=3"]
    config = compose_all("train", overrides)[0].config
    OmegaConf.save(
        OmegaConf.masked_copy(config, [str(k) for k in config if k != "hydra"]), folder / ".hydra/config.yaml"
    )
    OmegaConf.save(overrides, folder / ".hydra" / "overrides.yaml")
    arguments = continue_run("plan", str(folder), [f"resume={folder}", "memory_gb=16", "attention=plain"])
    assert {"seed=3", "memory_gb=16", "attention=plain"} < set(arguments)
