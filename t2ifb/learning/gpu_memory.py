"""What a fine-tuning run needs of a GPU's memory: living tensors, what the allocator holds beyond them, libraries."""

from collections.abc import Hashable, Sequence

from t2ifb.diffusion.pool import CachingAllocator, smallest_capacity
from t2ifb.learning.cost import LOOK, OPTIMISER, ROUNDING, UPDATE, WEIGHTS, Cost

GB = 1e9
CONTEXT = 0.5 * GB
"""Bytes of a CUDA context with the kernels of PyTorch, cuBLAS and cuDNN that a run loads.

An estimate: 0.3 to 0.6 GB are usual. `python -m tests.gpu_check` measures it.
"""
WORKSPACE = 0.5 * GB
"""Bytes of the workspaces of cuDNN and cuBLAS, which come out of the allocator's pool.

An estimate: an algorithm that needs its tensors in another layout copies them, and input and output of the largest
convolution in Stable Diffusion's decoder, 256 and 128 channels at 512 x 512 in float32, are 0.4 GB. Where memory is
short, PyTorch takes an algorithm that needs less. cuBLAS takes 8 to 32 MB.
"""
LIBRARIES = CONTEXT + WORKSPACE
SPARE = 0.05
"""Share of the memory that has to be left for a run to fit. With less it is tight.

Kernels' temporary memory is not counted: on a CPU the peak was 1 to 2 % too low (`tests/learning/test_refl_cost.py`).
A GPU sold as 16 GB has about 15.8 GB for programs, and a display takes some.
"""
LIFE: Sequence[str] = (LOOK, "", ROUNDING, "", OPTIMISER, UPDATE, UPDATE, "", LOOK, "", UPDATE, "", LOOK, "", UPDATE)
"""The phases of a run; at an empty name the allocator's cache is emptied.

The base model's images and the rounding come first, then updates with validations between them. Allocations repeat from
there on.
"""


def pool_size(update: Cost, judging: Cost) -> int:
    """Bytes of the smallest allocator's pool in which all phases of a run find their memory.

    Args:
        update: What updates need.
        judging: What validations of the same run need.
    """
    phases = update.phases | judging.phases
    weights = {number for number, _ in phases[WEIGHTS]}
    events = {
        name: [(number if number in weights else (name, number), size) for number, size in phase if size]
        for name, phase in phases.items()
    }

    left = {name: _left(phase) for name, phase in events.items()}

    def replay(allocator: CachingAllocator) -> None:
        for name in (WEIGHTS, *LIFE):
            if not name:
                allocator.empty_cache()
                continue
            for key in left[name]:  # by the same phase before: gradients live until the next update begins
                allocator.free(key)
            for key, size in events[name]:
                if size > 0:
                    allocator.allocate(key, size)
                else:
                    allocator.free(key)

    return smallest_capacity(replay)


def _left(events: Sequence[tuple[Hashable, int]]) -> set[Hashable]:
    """What is allocated and not freed."""
    return {key for key, size in events if size > 0} - {key for key, size in events if size < 0}
