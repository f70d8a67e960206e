"""Out of memory: which settings would help, and where to read what each part needs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

SIGNS = ("can't allocate memory", "ALLOC_FAILED")
"""In messages of the CPU's allocator, and of cuBLAS and cuDNN, which have no error of their own for it."""


@contextmanager
def explained_memory(savings: Callable[[], Sequence[str]], planned: bool = True) -> Iterator[None]:
    """Say what to do when the memory is too small, on a GPU or a CPU.

    Args:
        savings: Gives the settings that would help.
        planned: Whether `t2ifb.plan` knows what the run needs.

    Raises:
        ValueError: It is.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(sign in str(error) for sign in SIGNS):
            raise
        helps = f" What saves most: {', '.join(savings())}." if savings() else ""
        plan = " `python -m t2ifb.plan` with the same arguments says what each part needs." if planned else ""
        raise ValueError(f"out of memory: {str(error).splitlines()[0][:200]}{helps}{plan}") from error
