"""What went wrong in another process is said here as it was there."""

import pickle

import pytest

from t2ifb.config.errors import ConfigError
from t2ifb.evaluation.lazy import UnusableScorers


@pytest.mark.parametrize("error", [ConfigError(["an error", "another"]), UnusableScorers({"gold": "no weights"})])
def test_an_error_comes_out_of_another_process_whole(error: ConfigError | UnusableScorers) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.errors, str(again)) == (type(error), error.errors, str(error))
