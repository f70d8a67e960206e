"""Noise as a function of (seed, position): nothing depends on what was drawn before, nor on the device."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

STREAM = 0x0DF0
"""Keeps this stream of random numbers apart from others with the same seed."""
INITIAL = 0
"""The draw of a sample that its rollout begins with; the noise of step i is draw i + 1."""


def gaussian(keys: Sequence[Sequence[int]], draw: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise for some samples.

    Args:
        keys: B tuples of whole numbers from 0 on, what each sample is known by, such as (seed, step, number).
        draw: Which of a sample's draws.
        shape: (C, H, W) of one sample.

    Returns:
        (B, C, H, W) float32 on the CPU.
    """
    drawn = [np.random.default_rng([STREAM, draw, *key]).standard_normal(tuple(shape), np.float32) for key in keys]
    return torch.from_numpy(np.stack(drawn))
