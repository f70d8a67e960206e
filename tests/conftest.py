"""What every test starts from: no network, no account, one thread per worker, the same random weights."""

import importlib
import io
import logging
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
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


@pytest.fixture(scope="session", autouse=True)
def _no_data_of_this_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Data that another test or a user's run builds does not change what a test sees."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("T2IFB_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_composition_that_gives_nothing() -> Iterator[None]:
    """Hydra composes everything to learn the mode of a run, which only a sweep file or an argument sets."""
    plain = Hydra.get_mode

    def get_mode(hydra: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        sets_it = any(word in override for override in overrides for word in ("sweep", "hydra"))
        return plain(hydra, config_name, overrides) if sets_it else None

    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(Hydra, "get_mode", get_mode)
        yield


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless browser; one for all tests of a worker. Tests that need it are skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: pip install -e '.[dev]'")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser to look at the page with ({', '.join(BROWSERS)}): apt-get install chromium")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


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


def run_in(folder: Path, module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m <module> <arguments>` in a folder, without a process of its own: its imports are there already."""
    main = importlib.import_module(module).main
    output, errors, status = io.StringIO(), io.StringIO(), 0
    handlers, level = logging.root.handlers[:], logging.root.level
    with pytest.MonkeyPatch.context() as changed, redirect_stdout(output), redirect_stderr(errors):
        changed.chdir(folder)
        for name, value in {"T2IFB_DATA": str(folder / "data"), **environment}.items():
            changed.setenv(name, value)
        changed.setattr(sys, "argv", [module, *arguments])
        try:
            main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except Exception:  # as the interpreter does
            traceback.print_exc()
            status = 1
        finally:  # Hydra leaves its state and its handlers of logs behind
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None
            logging.root.handlers[:] = handlers
            logging.root.setLevel(level)
    return subprocess.CompletedProcess([module, *arguments], status, output.getvalue(), errors.getvalue())


@pytest.fixture
def run_here(tmp_path: Path) -> Command:
    """What `run_module` does, without a process of its own."""
    return partial(run_in, tmp_path)
