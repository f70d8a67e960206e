"""Improve text-to-image diffusion models with learned feedback, and tell the truth about the result.

The public classes and functions can be imported from here, and are loaded on first use: `from t2ifb import FineTuner`.
"""

import os
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # read at run time too; scorers and algorithms that are not here are found by their methods
    from t2ifb.data.rankings import RankedPrompt as RankedPrompt
    from t2ifb.data.rankings import load_rankings as load_rankings
    from t2ifb.diffusion.path import gaussian_kl as gaussian_kl
    from t2ifb.finetuning.draft import DRaFT as DRaFT
    from t2ifb.finetuning.module import FineTuningModule as FineTuningModule
    from t2ifb.finetuning.module import ReFLModule as ReFLModule
    from t2ifb.finetuning.refl import ReFL as ReFL
    from t2ifb.finetuning.reward_weighted import RewardWeighted as RewardWeighted
    from t2ifb.finetuning.run import FineTuner as FineTuner
    from t2ifb.iteration.run import Iteration as Iteration
    from t2ifb.reward_learning.module import RewardModule as RewardModule
    from t2ifb.reward_learning.run import RewardTrainer as RewardTrainer
    from t2ifb.scorers import *  # noqa: F403
    from t2ifb.training.losses import bradley_terry_loss as bradley_terry_loss

__version__ = "0.1.0"


def _wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait for each other; a user's own setting wins.

    By default they spin for milliseconds, and beside one other busy process work on the CPU becomes about 25 times
    slower. A spin of some microseconds is short enough for a busy machine and costs a quiet one little;
    without any spin it loses a third. The OpenMP runtime reads these variables when torch is loaded, and child
    processes inherit them. The first two are GNU's, which torch ships with on Linux, the last one Intel's and
    LLVM's.
    """
    chosen = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ)
    if not chosen:
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    if not chosen and "torch" in sys.modules and sys.modules["torch"].get_num_threads() > 1:
        warnings.warn(
            "torch was imported before t2ifb, too late to set OMP_WAIT_POLICY=PASSIVE. Beside other busy processes, "
            "work on the CPU may be 25 times slower. Import t2ifb first, or set OMP_WAIT_POLICY=PASSIVE in the "
            "environment.",
            stacklevel=3,
        )


_wait_passively()


def _public() -> dict[str, str]:
    """Full module names of the public classes and functions, by name."""
    from t2ifb.scorers import scorer_classes
    from t2ifb.utils.discovery import classes_with, typed_imports

    package = Path(__file__).parent
    needed = {"collect": ("policy", "batch"), "loss": ("policy", "part")}
    algorithms = classes_with(f"{__name__}.finetuning", package / "finetuning", needed)
    return algorithms | scorer_classes() | typed_imports(Path(__file__))


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:  # lazy, because the modules import torch
        if not name.startswith("_") and (module := _public().get(name)):
            return getattr(import_module(module), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_public()})
