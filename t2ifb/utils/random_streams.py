"""All random streams. Every draw is a function of (stream, seed, position), independent of earlier draws."""

from collections.abc import Sequence
from enum import IntEnum, unique

import numpy as np
import torch
from torch import Tensor


@unique
class Stream(IntEnum):
    """Separates draws that have the same seed. A changed value changes the results of all runs."""

    EPOCH_ORDER = 0x0DDE
    """Order of the units of an epoch."""
    WEIGHTED_ORDER = 0x0DDF
    """Order of units that appear more or less often than once per epoch."""
    SUBSET = 0x0DE0
    """Choice of a subset of units."""
    NOISE = 0x0DF0
    """Noise of latents."""
    REFL_STEPS = 0x0DF1
    """Steps at which ReFL takes its gradients."""
    VALIDATION = 0x0DF2
    """Part of the noise keys of validation samples."""
    TEST = 0x0DF3
    """Part of the noise keys of test samples."""
    DRAFT_STEPS = 0x0DF4
    """Number of steps that DRaFT back-propagates through."""
    REWARD_WEIGHTED_STEPS = 0x0DF5
    """Noise levels of reward-weighted likelihood."""
    IMAGE_CACHE = 0x0DF6
    """Part of the noise keys of images that compare models."""
    BEST_OF = 0x0DFB
    """Part of the noise keys of further test samples, from which the best is chosen."""
    GRPO_STEPS = 0x0DF8
    """Steps that GRPO trains."""
    POOL = 0x0DF9
    """Order of the samples of a pool."""
    POOL_STEPS = 0x0DFA
    """Steps and empty prompts of a pool's minibatches."""
    ANNOTATION = 0x0DFF
    """Orders of questions and of their images."""
    COLLECTION = 0x0DFE
    """Prompts that rankings are collected of, and part of the noise keys of their images."""
    DISTILLATION_STEPS = 0x0DFC
    """Steps at which guidance is distilled."""
    MINIBATCHES = 0x0DF7
    """Seeds of an experience's minibatches."""


INITIAL = 0
"""Index of the draw that starts a rollout. The noise of step i is draw i + 1."""


def generator(stream: Stream, *key: int) -> np.random.Generator:
    """Random numbers of a stream for a key of non-negative integers, such as (seed, epoch)."""
    return np.random.default_rng([stream, *key])


def gaussian(keys: Sequence[Sequence[int]], draw: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise for B samples.

    Args:
        keys: B tuples of non-negative integers that identify the samples, such as (seed, step, number).
        draw: Index of the draw within each sample.
        shape: Shape (C, H, W) of one sample.

    Returns:
        (B, C, H, W) float32 on the CPU.
    """
    drawn = [generator(Stream.NOISE, draw, *key).standard_normal(tuple(shape), np.float32) for key in keys]
    return torch.from_numpy(np.stack(drawn))
