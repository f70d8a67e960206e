import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2ifb.data.samplers import TrainingOrder, cuts

weights = st.lists(st.integers(1, 36), min_size=1, max_size=60).map(np.array)


@given(weights, st.data())
def test_cuts_make_batches_that_are_never_empty(weights: np.ndarray, data: st.DataObject) -> None:
    batches = data.draw(st.integers(1, len(weights)))
    borders = cuts(weights, batches)
    assert len(borders) == batches + 1
    assert (borders[0], borders[-1]) == (0, len(weights))
    assert (np.diff(borders) >= 1).all()


@given(st.lists(st.integers(0, 36).map(lambda n: n + 1), min_size=1, max_size=100), st.integers(40, 300))
def test_batches_are_about_the_wished_size(weights: list[int], batch_size: int) -> None:
    order = TrainingOrder(np.array(weights), batch_size, seed=0)
    sizes = [order.weights[order.units(position)].sum() for position in range(order.steps_per_epoch)]
    mean = sum(weights) / order.steps_per_epoch
    assert mean <= batch_size or order.steps_per_epoch == len(weights)
    assert max(abs(size - mean) for size in sizes) <= 2 * max(weights)


@given(weights, st.integers(1, 100), st.integers(0, 2**32), st.integers(0, 5))
def test_an_epoch_is_a_permutation(weights: np.ndarray, batch_size: int, seed: int, epoch: int) -> None:
    order = TrainingOrder(weights, batch_size, seed)
    start = epoch * order.steps_per_epoch
    units = np.concatenate([order.units(start + step) for step in range(order.steps_per_epoch)])
    assert sorted(units) == list(range(len(weights)))


@given(weights, st.integers(1, 100), st.integers(0, 9), st.lists(st.integers(0, 500), max_size=20))
def test_a_batch_depends_on_seed_and_position_alone(
    weights: np.ndarray, batch_size: int, seed: int, before: list[int]
) -> None:
    order, fresh = TrainingOrder(weights, batch_size, seed), TrainingOrder(weights, batch_size, seed)
    for position in before:
        order.units(position)
    np.testing.assert_array_equal(order.units(77), fresh.units(77))


def test_seeds_and_epochs_differ() -> None:
    weights = np.ones(50, np.int64)
    one, other = TrainingOrder(weights, 50, seed=0), TrainingOrder(weights, 50, seed=1)
    assert one.steps_per_epoch == 1
    assert (one.units(0) != one.units(1)).any()
    assert (one.units(0) != other.units(0)).any()


@pytest.mark.parametrize(
    ("weights", "batch_size", "seed", "what"),
    [([], 4, 0, "no comparisons"), ([1], 0, 0, "batch_size"), ([1], 1, -1, "seed must be at least 0")],
)
def test_wrong_arguments_are_refused(weights: list[int], batch_size: int, seed: int, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        TrainingOrder(np.array(weights, np.int64), batch_size, seed)
