"""A run is described before anything of it is loaded."""

from dataclasses import replace
from itertools import combinations
from statistics import mean
from typing import Any

import pytest

from t2ifb.diffusion.sampling import Sampler
from t2ifb.finetuning.refl import ReFL
from t2ifb.profiling.cost import RunSpec
from tests.profiling.test_savings import small_run


@pytest.fixture(scope="module")
def run() -> RunSpec:
    return small_run()


@pytest.mark.parametrize("gradients", [1, 2, 3])
@pytest.mark.parametrize("window", [(0, 2), (1, 4), (5, 7)])
def test_a_rollout_goes_on_to_its_last_gradient_on_the_average(
    run: RunSpec, window: tuple[int, int], gradients: int
) -> None:
    """Over all choices of steps, and without the last step itself, which is not a step of the rollout."""
    run = replace(run, rollout=Sampler(8), algorithm=ReFL(window, gradients))
    choices = list(combinations(range(window[0], window[1] + 1), gradients))
    assert run.work.steps == pytest.approx(mean(max(steps) for steps in choices))
    assert (run.work.images, run.work.rows) == (0, gradients)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"samples_per_batch": 0}])
def test_sizes_of_zero_are_refused(run: RunSpec, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        replace(run, **wrong)
