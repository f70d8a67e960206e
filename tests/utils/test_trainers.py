"""Arguments of trainers."""

import pytest

from t2ifb.utils.trainers import has_several


@pytest.mark.parametrize(
    ("trainer", "several"),
    [
        ({}, False),
        ({"devices": 1, "strategy": "auto", "num_nodes": 1}, False),
        ({"devices": [1]}, False),  # the second GPU, alone
        ({"devices": [0, 1]}, True),
        ({"devices": "auto"}, True),
        ({"devices": 1, "num_nodes": 2}, True),
        ({"strategy": "ddp"}, True),
    ],
)
def test_a_trainer_of_several_processes_is_known(trainer: dict[str, object], several: bool) -> None:
    assert has_several(trainer) == several
