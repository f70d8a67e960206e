"""The guard's figure."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from t2ifb.learning.guard import guarded, rise

RISES = st.lists(st.floats(-9, 9), min_size=1, max_size=6)


def test_one_judge_cannot_carry_the_others() -> None:
    assert guarded([2.0, -1.0, -0.9, -0.1]) == pytest.approx(-0.5)  # their mean is 0
    assert guarded([0.3, -0.1]) == pytest.approx(0.1)  # no judge is far from the others: their mean


@given(RISES)
def test_it_lies_between_the_worst_judge_and_the_mean(rises: list[float]) -> None:
    mean = sum(rises) / len(rises)
    assert min(rises) - 1e-9 <= guarded(rises) <= mean + 1e-9
    assert guarded(rises, math.inf) == pytest.approx(mean)
    assert guarded(rises, 0.0) == pytest.approx(min(rises), abs=1e-9)


def test_a_rise_is_in_standard_deviations_of_the_base_models_scores() -> None:
    before = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert rise(before, before + 2) == pytest.approx(2 / np.std([1, 2, 3, 4], ddof=1))
    assert rise(torch.tensor([1.0, torch.nan, 3.0]), torch.tensor([2.0, 9.0, torch.nan])) == pytest.approx(1 / 2**0.5)
    assert rise(before[:1], before[:1] + 2) == 2  # one image has no deviation
