"""Weights & Biases without an account, and the loggers that need nothing."""

import os
from functools import partial
from pathlib import Path

import pytest

from t2ifb.learning.loggers import BEST, STEP, csv_logger, logged_in, no_logger, wandb_logger
from t2ifb.learning.run_folder import RunFolder
from tests.learning.wandb_files import read
from tests.learning.worlds import make_training, run_training


def test_an_offline_run_records_config_metrics_and_examples_and_leaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    run = tmp_path / "shapes" / "reward_mlp" / "now"
    figures = run_training(make_training(tmp_path, epochs=1), run, logger=partial(wandb_logger, project="test"))
    written = read(run)
    assert written.run.display_name == "reward_mlp-seed0-now"
    assert written.metrics["*"].step_metric == STEP and written.metrics["*"].options.step_sync
    for name, best in BEST.items():
        assert written.metrics[name].step_metric == STEP and getattr(written.metrics[name].summary, best)
    assert all(STEP in logged for logged in written.history)
    assert "val/accuracy" in written.history[0] and "examples._type" in written.history[-1]
    assert written.summary["kept/accuracy"] == pytest.approx(figures["validation"]["accuracy"])
    assert "WANDB_MODE" not in os.environ
    import wandb

    assert wandb.run is None  # the next job of this process starts afresh


def test_other_loggers(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert no_logger(run, {}) is False
    logger = csv_logger(run, {})
    assert logger is not False
    assert Path(str(logger.log_dir)).parent == tmp_path


def test_logged_in_means_a_key_and_no_wish_to_stay_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert not logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert logged_in()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not logged_in()
