"""Importing the package: how OpenMP's threads wait."""

import os
import subprocess
import sys

import pytest

from tests.conftest import CHECKOUT

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SHOWN = f"import os; print(*(os.environ.get(name) for name in {NAMES}))"


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in which nothing says yet how to wait."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=CHECKOUT,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )


def test_threads_wait_passively_unless_the_user_says_otherwise() -> None:
    assert python(f"import t2ifb; {SHOWN}").stdout == "PASSIVE 3000 0\n"
    asked = python(f"import t2ifb; {SHOWN}", OMP_WAIT_POLICY="ACTIVE", KMP_BLOCKTIME="200")
    assert asked.stdout == "ACTIVE None 200\n"
    assert python(f"import t2ifb; {SHOWN}", GOMP_SPINCOUNT="5").stdout == "None 5 0\n"


def test_child_processes_inherit_the_setting() -> None:
    code = f"import t2ifb, subprocess, sys; subprocess.run([sys.executable, '-c', {SHOWN!r}], check=True)"
    assert python(code).stdout == "PASSIVE 3000 0\n"


@pytest.mark.parametrize(("environment", "warnings"), [({}, 1), ({"OMP_WAIT_POLICY": "PASSIVE"}, 0)])
def test_torch_that_was_loaded_first_gives_one_warning(environment: dict[str, str], warnings: int) -> None:
    code = "import torch; torch.set_num_threads(2); import t2ifb, t2ifb.scorers"
    assert python(code, **environment).stderr.count("torch was imported before t2ifb") == warnings
