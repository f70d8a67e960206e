"""The layers that LAION's aesthetic predictor and ImageReward put on their features."""

from torch import nn


def linear_stack(width: int) -> nn.Sequential:
    """D → 1024 → 128 → 64 → 16 → 1, dropout after the first three layers, no activation between.

    The linear layers have the numbers 0, 2, 4, 6, 7, as in the published checkpoints. Without activations they compose
    to one affine map; the files have them singly.

    Args:
        width: D, numbers of the input.
    """
    return nn.Sequential(
        nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64),
        nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
    )  # fmt: skip
