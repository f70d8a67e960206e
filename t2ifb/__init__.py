"""Improve text-to-image diffusion models with learned feedback, and tell the truth about the result."""

import os
import sys
import warnings

__version__ = "0.1.0"


def _wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait for each other; a user's own setting wins.

    By default they spin, and beside one other busy process everything on the CPU becomes about 25 times slower. The
    OpenMP runtime reads these variables when torch is loaded, and child processes inherit them. `OMP_WAIT_POLICY` is
    GNU's, which torch ships with on Linux; `KMP_BLOCKTIME` is Intel's and LLVM's.
    """
    known = "OMP_WAIT_POLICY" in os.environ
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    if "torch" in sys.modules and not known and sys.modules["torch"].get_num_threads() > 1:
        warnings.warn(
            "torch was imported before t2ifb, too late to set OMP_WAIT_POLICY=PASSIVE. Beside other busy processes, work "
            "on the CPU may be 25 times slower. Import t2ifb first, or set OMP_WAIT_POLICY=PASSIVE in the environment.",
            stacklevel=3,
        )


_wait_passively()
