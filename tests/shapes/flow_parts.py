"""The rectified flow of the world with random weights."""

from pathlib import Path

import torch
from torch import nn

from t2ifb.shapes.training import flow
from t2ifb.shapes.weights import load_pipeline


def write_untrained(folder: Path) -> Path:
    """A saved pipeline whose transformer has no layers of zeros, so that all prompts and adapters matter."""
    base = load_pipeline(torch.float32)
    model = flow.untrained(base, seed=0)
    for layer in model.transformer.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.any():
            nn.init.normal_(layer.weight, std=0.05)
    flow.assembled(base, model).save_pretrained(folder)
    return folder
