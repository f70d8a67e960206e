"""Linear layers of LAION's aesthetic predictor and ImageReward."""

from torch import nn


def linear_stack(width: int) -> nn.Sequential:
    """D → 1024 → 128 → 64 → 16 → 1, with dropout after the first three layers and no activations.

    The linear layers have the indices 0, 2, 4, 6, 7, as in the published checkpoints. Without activations they compose
    to one affine map, but the files store them separately.

    Args:
        width: Input width D.
    """
    return nn.Sequential(
        nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64),
        nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1),
    )  # fmt: skip
