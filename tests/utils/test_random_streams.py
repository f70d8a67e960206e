"""Draws are functions of (stream, seed, position)."""

import numpy as np
import pytest
import torch

from t2ifb.utils.random_streams import Stream, gaussian, generator


def test_no_two_streams_are_the_same() -> None:
    assert len({stream.value for stream in Stream}) == len(Stream.__members__)
    first = {tuple(generator(stream, 0, 0).integers(2**60, size=2)) for stream in Stream}
    assert len(first) == len(Stream)


def test_the_same_key_gives_the_same_numbers_and_another_key_others() -> None:
    one, again, other = (generator(Stream.REFL_STEPS, 3, position).random(4) for position in (7, 7, 8))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_a_samples_noise_does_not_depend_on_its_batch() -> None:
    keys = [(0, 5, number) for number in range(4)]
    together = gaussian(keys, 2, (4, 8, 8))
    assert torch.equal(together[2:3], gaussian(keys[2:3], 2, (4, 8, 8)))
    assert not torch.equal(together, gaussian(keys, 3, (4, 8, 8)))


def test_noise_is_standard_normal() -> None:
    noise = gaussian([(0, 0, number) for number in range(64)], 0, (4, 16, 16)).double()
    assert noise.mean().item() == pytest.approx(0, abs=4 / noise.numel() ** 0.5)
    assert noise.var().item() == pytest.approx(1, abs=6 / noise.numel() ** 0.5)
