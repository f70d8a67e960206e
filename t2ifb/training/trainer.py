"""Construction of the Lightning trainer and of checkpoints for all runs."""

import io
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, Trainer
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities import rank_zero_only

from t2ifb.training.metrics import MetricsCSV, read_metrics, validation_figures
from t2ifb.training.nan_guard import NanGuard
from t2ifb.training.run_folder import RunFolder
from t2ifb.training.signals import StopOnSignal
from t2ifb.utils.devices import accelerator_of, device_facts, local_rank
from t2ifb.utils.files import atomic_write


class WholeCheckpointIO(TorchCheckpointIO):
    """Atomic checkpoint writer: writes a temporary file in the same folder and renames it.

    Lightning writes to the system's temporary folder and moves the file, which copies it if that folder is on another
    file system. A kill during the copy leaves a truncated checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write one checkpoint.

        Raises:
            StorageError: The disk is full or the folder is not writable.
        """
        content = io.BytesIO()  # torch's writer hides the error of a full disk
        torch.save(checkpoint, content)
        with atomic_write(path) as file:
            file.write(content.getbuffer())


class _Checkpoint(ModelCheckpoint):
    """Recognises its files after the run's folder was moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score, which Lightning drops if the folder was renamed."""
        before, now = str(state_dict["dirpath"]), str(self.dirpath)

        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {moved(key): item for key, item in value.items()}
            return value.replace(before, now) if isinstance(value, str) else value

        super().load_state_dict({key: moved(value) for key, value in state_dict.items()})


def best_and_last(run: RunFolder, best_by: str) -> list[ModelCheckpoint]:
    """Checkpoints after each validation: the best state by `best_by`, and the last one for resuming."""
    options: dict[str, Any] = {"enable_version_counter": False, "save_on_train_epoch_end": False}
    best = _Checkpoint(run.checkpoints, "best", monitor=best_by, mode="max", **options)
    last = _Checkpoint(run.checkpoints, "last", monitor=None, every_n_train_steps=None, **options)
    return [best, last]


MakeTrainer = Callable[..., Trainer]
MakeLogger = Callable[..., Logger | Literal[False]]
ONE_DEVICE = partial(Trainer, accelerator="auto", devices=1)
"""The default trainer: one GPU if there is one, else the CPU, in float32."""
FIRST_SCALE = 2.0**12
"""Initial loss scale in fp16. PyTorch's 2^16 overflows at alpha = 100; 1 to 2^12 give the same gradients."""
SET_BY_THE_RUN = {
    "max_epochs": "give epochs=…",
    "max_steps": "give epochs=…",
    "val_check_interval": "other arguments set the validation interval",
    "check_val_every_n_epoch": "other arguments set the validation interval",
    "log_every_n_steps": "figures are logged every 10 updates",
    "logger": "give logger=…",
}
"""Trainer arguments that are set by the run's own settings, with the reason."""


class ProgressBar(RichProgressBar):
    """Progress over the steps of the whole run, because the endless training order has no epochs."""

    @property
    def total_train_batches(self) -> int:
        """Updates of the whole run. Lightning would subtract those before a resume but count them as done."""
        return self.trainer.max_steps

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"


def _listed(given: Any) -> list[Any]:
    """What the user gives to the trainer: nothing, one object or several."""
    if given is None:
        return []
    return list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]


def make_trainer(
    trainer: MakeTrainer,
    run: RunFolder,
    logger: Logger | Literal[False],
    steps: int,
    validate_every: int,
    best_by: str,
    metrics: MetricsCSV,
    guard: NanGuard,
    callbacks: Sequence[Callback] = (),
) -> Trainer:
    """Build the trainer of a run with its length, checkpoints and callbacks.

    Args:
        trainer: Builds the `lightning.Trainer`; callbacks and plugins in it are kept.
        run: Run folder, for checkpoints.
        logger: Logger in addition to `metrics.csv`.
        steps: Updates of the whole run.
        validate_every: Updates between two validations.
        best_by: Validation metric whose maximum selects the best state.
        metrics: Writes `metrics.csv`.
        guard: Skips updates with NaN.
        callbacks: Callbacks of the algorithm.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no tips between progress bars
    noise = ".*LeafSpec|.*exists and is not empty|.*in eval mode at the start"
    warnings.filterwarnings("ignore", message=f"{noise}|.*sync_dist=True")  # figures are equal in all processes
    given = getattr(trainer, "keywords", {})
    made = trainer(
        max_epochs=-1,
        max_steps=steps,
        val_check_interval=validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=metrics.every,
        use_distributed_sampler=False,
        enable_model_summary=False,
        default_root_dir=run.path,
        logger=logger,
        plugins=[WholeCheckpointIO(), *_listed(given.get("plugins"))],
        callbacks=[
            *_listed(given.get("callbacks")),
            *(guard, metrics, StopOnSignal(run), ProgressBar(), *callbacks, *best_and_last(run, best_by)),
        ],
    )
    plugin = made.precision_plugin
    if (
        isinstance(plugin, MixedPrecision)
        and plugin.scaler is not None
        and "precision" in getattr(trainer, "keywords", {})
    ):
        plugin.scaler = torch.amp.GradScaler(plugin.device, init_scale=FIRST_SCALE)
    return made


def check_mixed_precision(trainer: MakeTrainer, what: str, hint: str = "") -> None:
    """Check that a trainer does not round trained weights.

    Args:
        trainer: Builds the trainer.
        what: The trained weights, for the message.
        hint: End of the message.

    Raises:
        ValueError: They would be kept in half precision.
    """
    precision = str(getattr(trainer, "keywords", {}).get("precision"))
    if precision in ("16-true", "bf16-true"):
        mixed = precision.replace("true", "mixed")
        raise ValueError(
            f"trainer.precision={precision} would round the updates of {what} away; use trainer.precision={mixed}{hint}"
        )


def run_figures(
    engine: Trainer, run: RunFolder, guard: NanGuard, kept: int, chosen_by: str, seed: int, seconds: float
) -> dict[str, Any]:
    """The figures that every `summary.json` has.

    Args:
        engine: The trainer, after training.
        run: The run's folder.
        guard: Counted the skipped updates.
        kept: Step of the kept checkpoint.
        chosen_by: Validation metric that selected it.
        seed: Seed of the run.
        seconds: Duration of the run, with those before a resume.
    """
    return {
        "best_step": kept,
        "chosen_by": chosen_by,
        "validation": validation_figures(read_metrics(run.metrics), kept),
        "skipped_updates": guard.skipped,
        "overflowed_updates": guard.overflowed,
        "seed": seed,
        "precision": str(engine.precision),
        "device": device_facts(engine.strategy.root_device),
        "wall_seconds": round(seconds, 1),
    }


def on_usable_device(trainer: MakeTrainer) -> MakeTrainer:
    """The trainer with a resolved accelerator, see `accelerator_of`.

    Raises:
        ValueError: This PyTorch build cannot use the requested GPU.
    """
    wish = trainer.keywords.get("accelerator", "auto") if isinstance(trainer, partial) else None
    return partial(trainer, accelerator=accelerator_of(wish)) if isinstance(wish, str) else trainer


def named_gpu(trainer: MakeTrainer) -> str | None:
    """This process's GPU if the trainer lists its GPUs, as in `devices=[1]`."""
    given = getattr(trainer, "keywords", {})
    devices = given.get("devices")
    if given.get("accelerator") not in ("gpu", "cuda") or not isinstance(devices, (list, tuple)):
        return None
    return f"cuda:{devices[local_rank() % len(devices)]}"


def work_device(trainer: MakeTrainer) -> str:
    """Name of the device for work before and after training: the CPU if the trainer uses it, else `auto` or its GPU."""
    on_cpu = getattr(trainer, "keywords", {}).get("accelerator") == "cpu"
    return "cpu" if on_cpu else named_gpu(trainer) or "auto"


def first_process() -> bool:
    """Whether this is the process that writes; works before a trainer exists."""
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


def reject_reserved(part: Callable[..., Any], name: str, reasons: Mapping[str, str]) -> None:
    """Raise an error for arguments that the run sets itself.

    Raises:
        ValueError: Such an argument is given.
    """
    given = getattr(part, "keywords", {})
    if errors := [f"{name}.{key} is set by the run: {why}." for key, why in reasons.items() if key in given]:
        raise ValueError(" ".join(errors))
