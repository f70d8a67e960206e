"""Work that the processes of one run share. With a single process everything runs as if there were no group."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from lightning import Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch import Tensor

Value = TypeVar("Value")


def start_processes(trainer: Trainer) -> None:
    """Start the other processes of a trainer, set up the device and the process group, as `Trainer.fit` would do.

    Work before `fit` can then be shared. `fit` finds the processes and the group running.

    Args:
        trainer: The trainer. If its strategy starts processes inside `fit` only, such as `ddp_spawn`, there is one
            process until then.
    """
    strategy: Any = trainer.strategy
    if isinstance(strategy.launcher, _SubprocessScriptLauncher):
        strategy.launcher.launch(strategy.setup_environment)
    elif strategy.launcher is None:
        strategy.setup_environment()
    else:
        trainer.accelerator.setup_device(strategy.root_device)


def in_process_group() -> bool:
    """Whether this process is one of several in an initialised process group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def own_share() -> slice:
    """This process's share of N rows: every world-size-th, starting at its rank."""
    return slice(dist.get_rank(), None, dist.get_world_size()) if in_process_group() else slice(None)


def of_all(value: Value) -> list[Value]:
    """The value of each process, by rank. All processes must call this together."""
    values = [value]
    if in_process_group():
        values *= dist.get_world_size()
        dist.all_gather_object(values, value)
    return values


def of_first(compute: Callable[[], Value]) -> Value:
    """A value that the first process computes and sends to the others. All processes must call this together."""
    if not in_process_group():
        return compute()
    values: list[Any] = [compute() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(values)
    return values[0]  # type: ignore[no-any-return]


def in_shares(count: int, compute: Callable[[slice], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Columns (N, ...) by name. Each process computes its share of the rows. All must call this together.

    Args:
        count: N.
        compute: Columns (n, ...) of the rows that a slice of N selects. Not called for an empty share.

    Returns:
        The same columns in each process, on the CPU.
    """
    if not in_process_group():
        return {name: column.cpu() for name, column in compute(slice(None)).items()}
    own = compute(own_share()) if dist.get_rank() < count else {}
    parts = of_all({name: column.cpu() for name, column in own.items()})
    columns: dict[str, Tensor] = {}
    for rank, part in enumerate(parts):
        for name, rows in part.items():
            if name not in columns:
                columns[name] = rows.new_empty(count, *rows.shape[1:])
            columns[name][rank :: len(parts)] = rows
    return columns
