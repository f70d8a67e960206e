"""Improve text-to-image diffusion models with learned feedback, and tell the truth about the result."""

import os
import sys
import warnings

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
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    if not chosen and "torch" in sys.modules and sys.modules["torch"].get_num_threads() > 1:
        warnings.warn(
            "torch was imported before t2ifb, too late to set OMP_WAIT_POLICY=PASSIVE. Beside other busy processes, "
            "work on the CPU may be 25 times slower. Import t2ifb first, or set OMP_WAIT_POLICY=PASSIVE in the "
            "environment.",
            stacklevel=3,
        )


_wait_passively()
