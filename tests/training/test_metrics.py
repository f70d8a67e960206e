"""`metrics.csv`: one wide table over the steps, which a resumed run continues."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from t2ifb.training.metrics import MetricsCSV, read_metrics, validation_figures
from t2ifb.training.run_folder import RunFolder


def trainer(step: int, **figures: float) -> Any:
    """What the callback sees of a trainer; `train_loss` stands for `train/loss`."""
    metrics = {name.replace("_", "/", 1): torch.tensor(value, dtype=torch.float64) for name, value in figures.items()}
    return SimpleNamespace(
        global_step=step, callback_metrics=metrics, sanity_checking=False, is_global_zero=True
    )  # fmt: skip


def numbers(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The rows without times and without what was not measured."""
    return [
        {name: float(value) for name, value in row.items() if name != "wall_seconds" and value not in ("", None)}
        for row in rows
    ]


def test_rows_are_written_every_few_steps_and_a_validation_joins_its_step(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    metrics: Any = MetricsCSV(run, every=2)
    metrics.start = {"val/kl": 0.0}
    metrics.on_train_start(trainer(0), None)
    for step in range(1, 5):
        metrics.on_train_batch_end(trainer(step, train_loss=step / 10, val_kl=9.0), None)
    metrics.on_validation_end(trainer(4, train_loss=9.0, val_kl=0.5), None)
    metrics.on_train_end(trainer(4), None)
    rows = read_metrics(run.metrics)
    assert numbers(rows) == [
        {"step": 0, "val/kl": 0}, {"step": 2, "train/loss": 0.2}, {"step": 4, "train/loss": 0.4, "val/kl": 0.5},
    ]  # fmt: skip
    times = [float(row["wall_seconds"]) for row in rows]
    assert times == sorted(times) and times[0] == 0


def test_a_metric_that_the_module_did_not_log_again_is_left_out(tmp_path: Path) -> None:
    """A run that goes on from a checkpoint, where Lightning knows no earlier metric, then writes the same rows."""
    run = RunFolder(tmp_path)
    metrics: Any = MetricsCSV(run, every=1)
    metrics.on_train_start(trainer(0), None)
    metrics.on_train_batch_end(
        trainer(1, train_kl=1.0, train_kl_1=1.0), SimpleNamespace(logged={"train/kl", "train/kl_1"})
    )
    metrics.on_train_batch_end(trainer(2, train_kl=2.0, train_kl_1=1.0), SimpleNamespace(logged={"train/kl"}))
    metrics.write(trainer(2))
    assert numbers(read_metrics(run.metrics))[1] == {"step": 2, "train/kl": 2}


def test_a_resumed_run_drops_what_came_after_its_checkpoint_and_continues_its_clock(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    first: Any = MetricsCSV(run, every=1)
    first.on_train_start(trainer(0), None)
    for step in (1, 2, 3):
        first.on_train_batch_end(trainer(step, train_loss=float(step)), None)
    first.write(trainer(3))
    resumed: Any = MetricsCSV(run, every=1)
    resumed.load_state_dict({"seconds": 1000.0})
    resumed.on_train_start(trainer(2), None)
    resumed.on_train_batch_end(trainer(3, train_loss=7.0), None)
    resumed.write(trainer(3))
    rows = read_metrics(run.metrics)
    assert [row["train/loss"] for row in numbers(rows)] == [1, 2, 7]
    assert float(rows[-1]["wall_seconds"]) >= 1000
    assert resumed.state_dict()["seconds"] >= 1000


def test_a_new_run_in_an_old_folder_begins_anew(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.metrics.write_text("step,wall_seconds,train/loss\n5,1,2\n")
    metrics: Any = MetricsCSV(run)
    metrics.on_train_start(trainer(0), None)
    assert metrics.rows == []


def test_only_the_first_process_writes_and_no_sanity_check_is_recorded(tmp_path: Path) -> None:
    metrics: Any = MetricsCSV(RunFolder(tmp_path))
    check = trainer(0, val_kl=1.0)
    check.sanity_checking, check.is_global_zero = True, False
    metrics.on_validation_end(check, None)
    assert metrics.rows == []
    metrics.write(check)
    assert not (tmp_path / "metrics.csv").exists()


def test_figures_of_a_validation_are_those_of_its_step() -> None:
    rows = [{"step": 0, "val/kl": 0.0}, {"step": 5, "train/loss": 1.0}, {"step": 10, "train/loss": 2.0, "val/kl": 3.5}]
    assert validation_figures(rows, 0) == {"kl": 0.0}
    assert validation_figures(rows, 10) == {"kl": 3.5}
    assert validation_figures(rows, 5) == validation_figures(rows, 7) == {}
