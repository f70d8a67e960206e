"""Noise as a function of (seed, position), independent of earlier draws and of the device."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

STREAM = 0x0DF0
"""Separates this random stream from others with the same seed."""
INITIAL = 0
"""Index of the draw that starts a rollout. The noise of step i is draw i + 1."""


def gaussian(keys: Sequence[Sequence[int]], draw: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise for B samples.

    Args:
        keys: B tuples of non-negative integers that identify the samples, such as (seed, step, number).
        draw: Index of the draw within each sample.
        shape: Shape (C, H, W) of one sample.

    Returns:
        (B, C, H, W) float32 on the CPU.
    """
    drawn = [np.random.default_rng([STREAM, draw, *key]).standard_normal(tuple(shape), np.float32) for key in keys]
    return torch.from_numpy(np.stack(drawn))
