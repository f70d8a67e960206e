"""What the arguments of a `lightning.Trainer` say. Nothing heavy is imported here."""

from collections.abc import Mapping
from typing import Any


def has_several(trainer: Mapping[str, Any]) -> bool:
    """Whether a trainer with these arguments works in several processes, as far as the arguments tell."""
    devices = trainer.get("devices", 1)
    one_device = devices == 1 or (isinstance(devices, list) and len(devices) == 1)
    return not one_device or trainer.get("strategy", "auto") != "auto" or trainer.get("num_nodes", 1) != 1
