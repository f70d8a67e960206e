"""Weights & Biases without an account, and the loggers that need nothing."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from t2ifb.training.loggers import (
    BEST,
    STEP,
    logged_in,
    names_of,
    no_logger,
    show,
    start,
    tensorboard_logger,
    wandb_logger,
)
from t2ifb.training.run_folder import RunFolder
from tests.training.wandb_files import read
from tests.training.worlds import FailingLogger, make_training, run_training


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where data, encoder and embeddings are, for all runs here."""
    return tmp_path_factory.mktemp("world")


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "t2ifb.training.loggers"]


def test_an_offline_run_records_config_metrics_and_examples_and_leaks_nothing(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    home = tmp_path / "home"
    for name, folder in {"HOME": "", "XDG_CACHE_HOME": ".cache", "XDG_DATA_HOME": ".local"}.items():
        monkeypatch.setenv(name, str(home / folder))
    run = tmp_path / "shapes" / "reward_mlp" / "now"
    figures = run_training(make_training(world, epochs=1), run, logger=partial(wandb_logger, project="test"))
    written = read(run)
    assert written.run.display_name == "reward_mlp-seed0-now"
    assert written.metrics["*"].step_metric == STEP and written.metrics["*"].options.step_sync
    for name, best in BEST.items():
        assert written.metrics[name].step_metric == STEP and getattr(written.metrics[name].summary, best)
    assert all(STEP in logged for logged in written.history)
    assert "val/accuracy" in written.history[0] and "examples._type" in written.history[-1]
    assert written.summary["kept/accuracy"] == pytest.approx(figures["validation"]["accuracy"])
    assert not {"WANDB_MODE", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"} & set(os.environ)
    assert not home.exists() and list(run.glob("wandb/data/artifacts/staging/*"))
    import wandb

    assert wandb.run is None  # the next job of this process starts afresh


def test_a_weights_and_biases_run_that_cannot_end_is_a_warning_after_the_summary(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb, "Table", full)
    run = tmp_path / "run"
    figures = run_training(make_training(world, epochs=1), run, logger=wandb_logger)
    assert figures["export"] and (run / "summary.json").exists()
    assert [text.count("No space left") for text in warned(caplog)] == [1]
    assert wandb.run is None


@pytest.mark.parametrize("at", ["init", "log_metrics"])
def test_a_logger_that_fails_in_a_run_is_one_warning(
    at: str, world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    figures = run_training(
        make_training(world, epochs=1), tmp_path / "run", logger=lambda run, config: FailingLogger(at)
    )
    assert figures["export"] and (tmp_path / "run" / "summary.json").exists()
    assert [text.count("the service has gone") for text in warned(caplog)] == [1]


def test_a_picture_that_cannot_be_logged_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    recorder = start(wandb_logger, RunFolder(tmp_path), {})
    assert recorder is not False
    for _ in range(2):
        show([recorder], "samples", tmp_path / "missing.png", 0)
    assert [text.count("missing.png") for text in warned(caplog)] == [1]
    import wandb

    assert wandb.run is None


def test_nothing_is_written_where_weights_and_biases_is_disabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_logger(RunFolder(tmp_path), {}) is False
    assert list(tmp_path.iterdir()) == []


def test_no_logger_is_none(tmp_path: Path) -> None:
    assert no_logger(RunFolder(tmp_path), {}) is False


def test_logged_in_means_a_key_and_no_wish_to_stay_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert not logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert logged_in()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not logged_in()


def test_without_tensorboard_the_run_goes_on_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("t2ifb.training.loggers.find_spec", lambda name: None)
    assert start(tensorboard_logger, RunFolder(tmp_path), {}) is False
    (message,) = warned(caplog)
    assert "install it with pip install tensorboard" in message


def test_tensorboard_gets_metrics_config_and_pictures(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recorder: Any = start(tensorboard_logger, RunFolder(tmp_path), {"seed": 3})
    recorder.log_metrics({"val/accuracy": 0.5}, step=7)
    Image.new("RGB", (4, 2)).save(tmp_path / "picture.png")
    show([recorder], "sheet", tmp_path / "picture.png", 7)
    recorder.save()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (figure,) = events.Scalars("val/accuracy")
    assert (figure.step, figure.value) == (7, 0.5)
    assert events.Tags()["images"] == ["sheet"] and "config/text_summary" in events.Tags()["tensors"]


@pytest.mark.parametrize(
    ("folder", "domain", "name", "group"),
    [
        ("outputs/shapes/refl/now", "shapes", "refl-seed3-now", "shapes/refl"),
        ("outputs/shapes/refl/sweep/hash", "shapes", "refl/sweep-seed3-hash", "shapes/refl/sweep"),
        ("outputs/shapes/rounds/now/round_01/tuning", "shapes", "rounds/now/round_01-seed3-tuning",
         "shapes/rounds/now/round_01"),
        ("outputs/tuned", "", "seed3-tuned", None),
        ("outputs/iter/round_01/tuning", "", "iter/round_01-seed3-tuning", "iter/round_01"),
        ("mine/refl/now", "shapes", "refl-seed3-now", "shapes/refl"),
        ("mine/shapes/now", "shapes", "seed3-now", "shapes"),
    ],
)  # fmt: skip
def test_a_run_is_named_after_its_folder_and_grouped_by_its_domain(
    tmp_path: Path, folder: str, domain: str, name: str, group: str | None
) -> None:
    found = names_of(tmp_path / folder, {"domain": domain, "seed": 3} if domain else {"seed": 3})
    assert found == (name, group, group.split("/") if group else [])
