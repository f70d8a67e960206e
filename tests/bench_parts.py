"""What both benchmarks of training measure with."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import lightning
from lightning.pytorch.callbacks import Timer

from t2ifb.training.metrics import MetricsCSV
from t2ifb.training.nan_guard import NanGuard
from t2ifb.training.run_folder import RunFolder
from t2ifb.training.trainer import ProgressBar


def fit_seconds(module: lightning.LightningModule, batches: Any, steps: int) -> float:
    """Some steps through Lightning with the callbacks of a run; seconds from the first step to the last."""
    timer = Timer()
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False, enable_model_summary=False,
            limit_val_batches=0, use_distributed_sampler=False, accelerator="cpu", default_root_dir=folder,
            callbacks=[MetricsCSV(RunFolder(folder)), NanGuard(), ProgressBar(), timer],
        )  # fmt: skip
        trainer.fit(module, train_dataloaders=batches)
    return timer.time_elapsed("train")


def beside_busy_processes(seconds: Callable[[], float]) -> float:
    """What a measurement gives while as many other processes are busy as there are cores."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        return seconds()
    finally:
        for process in others:
            process.kill()
            process.wait()
