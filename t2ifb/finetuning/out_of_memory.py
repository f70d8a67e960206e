"""Out-of-memory errors: name settings that save memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

SIGNS = ("can't allocate memory", "ALLOC_FAILED")
"""Signs in messages of the CPU's allocator, cuBLAS and cuDNN, which have no separate error type."""


@contextmanager
def explained_memory(savings: Callable[[], Sequence[str]], planned: bool = True) -> Iterator[None]:
    """Turn out-of-memory errors of GPU or CPU into a message with remedies.

    Args:
        savings: Returns the settings that save memory.
        planned: Whether `t2ifb.plan` supports the run.

    Raises:
        ValueError: Memory ran out.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(sign in str(error) for sign in SIGNS):
            raise
        helps = f" Largest savings: {', '.join(savings())}." if savings() else ""
        plan = " `python -m t2ifb.plan` with the same arguments shows the memory of each part." if planned else ""
        raise ValueError(f"out of memory: {str(error).splitlines()[0][:200]}{helps}{plan}") from error
