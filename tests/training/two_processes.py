"""Two processes of one gloo group for tests: forks of this one, which has all imports."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="gloo between forks is tried on Linux")


def _member(rank: int, folder: Path, work: Callable[[], Any]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'group'}", rank=rank, world_size=2)
    torch.save(work(), folder / f"result_{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def in_two_processes(folder: Path, work: Callable[[], Any]) -> list[Any]:
    """What `work` returns in each of two processes."""
    multiprocessing.start_processes(_member, (folder, work), nprocs=2, start_method="fork")
    return [torch.load(folder / f"result_{rank}.pt", weights_only=False) for rank in range(2)]
