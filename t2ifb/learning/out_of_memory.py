"""Out of memory: which settings would help, and where to read what each part needs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch


@contextmanager
def explained_memory(savings: Callable[[], Sequence[str]], planned: bool = True) -> Iterator[None]:
    """Say what to do when the memory is too small.

    Args:
        savings: Gives the settings that would help.
        planned: Whether `t2ifb.plan` knows what the run needs.

    Raises:
        ValueError: It is.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        helps = f" What saves most: {', '.join(savings())}." if savings() else ""
        plan = " `python -m t2ifb.plan` with the same arguments says what each part needs." if planned else ""
        raise ValueError(f"out of memory: {str(error).splitlines()[0][:200]}{helps}{plan}") from error
