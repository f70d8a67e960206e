"""Checkpoints that are whole or absent, whichever file systems the machine has."""

import io
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
        content = io.BytesIO()  # torch's writer hides what the operating system says of a full disk
        torch.save(checkpoint, content)
        with atomic_write(path) as file:
            file.write(content.getbuffer())
