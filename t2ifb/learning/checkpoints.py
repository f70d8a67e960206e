"""Checkpoints: which are kept, and that they are whole or absent, whichever file systems the machine has."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from t2ifb.data.files import atomic_write
from t2ifb.learning.run_folder import RunFolder


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the checkpoint and renames.

    Lightning writes into the system's temporary folder and moves the file, which is a copy where that folder is on
    another file system: a kill in the middle leaves half a checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write one checkpoint.

        Raises:
            StorageError: The disk is full or the folder cannot be written to.
        """
        content = io.BytesIO()  # torch's writer hides what the operating system says of a full disk
        torch.save(checkpoint, content)
        with atomic_write(path) as file:
            file.write(content.getbuffer())


class _Checkpoint(ModelCheckpoint):
    """Knows its files again when the run's folder was moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best score; Lightning forgets it when the folder has another name."""
        before, now = str(state_dict["dirpath"]), str(self.dirpath)

        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {moved(key): item for key, item in value.items()}
            return value.replace(before, now) if isinstance(value, str) else value

        super().load_state_dict({key: moved(value) for key, value in state_dict.items()})


def best_and_last(run: RunFolder, best_by: str) -> list[ModelCheckpoint]:
    """The state with the highest `best_by` so far, and the last one to go on from; both after each validation."""
    options: dict[str, Any] = {"enable_version_counter": False, "save_on_train_epoch_end": False}
    best = _Checkpoint(run.checkpoints, "best", monitor=best_by, mode="max", **options)
    last = _Checkpoint(run.checkpoints, "last", monitor=None, every_n_train_steps=None, **options)
    return [best, last]
