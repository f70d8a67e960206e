"""Checkpoints that are whole or absent, whichever file systems the machine has."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from t2ifb.data.files import atomic_write


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
        with atomic_write(path) as file:
            torch.save(checkpoint, file)
