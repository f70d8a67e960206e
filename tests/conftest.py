"""What every test starts from: no network, no account, one thread per worker, the same random weights."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

CHECKOUT = Path(__file__).resolve().parents[1]

# Before torch is loaded, which reads some of them then.
for name, value in {
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "OMP_NUM_THREADS": "1",  # pytest-xdist's workers share the cores
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ.setdefault(name, value)

import torch  # noqa: E402

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


def real_data(name: str) -> Path:
    """A real file that the project does not ship; the test is skipped where it is not.

    Looked for in the folder that `T2IFB_REAL_DATA` names, else in `shared/data` beside the checkout.
    """
    folder = Path(os.environ.get("T2IFB_REAL_DATA") or CHECKOUT.parent / "shared" / "data")
    if not (folder / name).is_file():
        pytest.skip(f"{folder / name} is not there")
    return folder / name


@pytest.fixture(autouse=True)
def _the_same_weights_each_time() -> None:
    """Networks that a test makes untrained are the same each time: a small one may happen to have dead units only."""
    torch.manual_seed(0)


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_module(tmp_path: Path) -> Command:
    """Run `python -m <module> <arguments>` in an empty folder, as a user would."""

    def run(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "T2IFB_DATA": str(tmp_path / "data"), **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
