"""A signal ends a run between two updates, with a checkpoint and the status that schedulers expect."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from t2ifb.training.run_folder import RunFolder
from t2ifb.training.signals import SIGNALS, StopOnSignal


class Trainer:
    """What the callback sees of a trainer."""

    def __init__(self, others: bool | None = None) -> None:
        self.world_size, self.global_step, self.saved = 1 if others is None else 2, 7, []  # type: ignore[var-annotated]
        self.strategy = SimpleNamespace(reduce_boolean_decision=lambda mine, all: mine or others)
        counts = [SimpleNamespace(ready=8, processed=7) for _ in range(2)]
        progress = SimpleNamespace(total=counts[0], current=counts[1])
        self.fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
        self.counts = counts

    def save_checkpoint(self, path: Path) -> None:
        self.saved.append((path, [count.ready for count in self.counts]))


@pytest.fixture
def stop(tmp_path: Path) -> Any:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield StopOnSignal(RunFolder(tmp_path))
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_next_update_is_not_begun_and_a_checkpoint_is_written(
    stop: Any, number: int, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer()
    stop.on_train_start(trainer, None)
    stop.on_train_batch_start(trainer, None)
    assert trainer.saved == []
    os.kill(os.getpid(), number)
    with pytest.raises(SystemExit) as ended:
        stop.on_train_batch_start(trainer, None)
    assert ended.value.code == status
    assert trainer.saved == [(stop.run.last_checkpoint, [7, 7])]  # the batch that was fetched comes again
    assert f"Stopped at step 7. To continue: resume={stop.run.path}" in capsys.readouterr().out


def test_a_run_of_an_iteration_is_continued_by_the_iteration(
    stop: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".hydra").mkdir()
    stop.run = RunFolder(tmp_path / "round_01" / "tuning")
    stop.received = signal.SIGTERM
    with pytest.raises(SystemExit):
        stop.on_train_batch_start(Trainer(), None)
    assert f"python -m t2ifb.train resume={tmp_path}\n" in capsys.readouterr().out


def test_a_second_ctrl_c_stops_at_once(stop: Any) -> None:
    stop.on_train_start(Trainer(), None)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back_at_the_end(stop: Any) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    stop.on_train_start(Trainer(), None)
    assert [signal.getsignal(number) for number in SIGNALS] != before
    stop.on_train_end(Trainer(), None)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_after_the_last_update_ends_the_run_too(stop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (stop.run.path / ".hydra").mkdir()
    stop.on_train_start(Trainer(), None)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        stop.on_train_end(Trainer(), None)
    assert "To finish: python -m t2ifb.train resume=" in capsys.readouterr().out


def test_all_processes_stop_whichever_had_the_signal(stop: Any) -> None:
    stop.on_train_start(Trainer(others=False), None)
    stop.on_train_batch_start(Trainer(others=False), None)
    with pytest.raises(SystemExit, match="143"):
        stop.on_train_batch_start(Trainer(others=True), None)
