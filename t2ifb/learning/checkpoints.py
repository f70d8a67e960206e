"""Checkpoints: atomic writes, and selection of the best and the last."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from t2ifb.data.files import atomic_write
from t2ifb.learning.run_folder import RunFolder


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
