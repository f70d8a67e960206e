"""Several processes are one run in one folder, or are refused."""

import pytest

from t2ifb.config.processes import are_started_outside
from tests.conftest import Command


@pytest.mark.parametrize(
    ("environment", "outside"),
    [
        ({}, False),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}, False),  # of Lightning's own
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, True),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, False),
    ],
)
def test_processes_that_others_start_are_known(environment: dict[str, str], outside: bool) -> None:
    assert are_started_outside(environment) == outside


def test_processes_that_others_start_need_one_folder(run_here: Command) -> None:
    done = run_here("t2ifb.train", "+experiment=refl", "trainer=ddp", "logger=none", RANK="1", WORLD_SIZE="2")
    assert done.returncode == 2
    assert "hydra.run.dir=<folder>" in done.stderr
