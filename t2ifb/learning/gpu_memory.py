"""GPU memory of a fine-tuning run: live tensors, allocator overhead, libraries."""

from collections.abc import Hashable, Sequence

from t2ifb.diffusion.pool import CachingAllocator, smallest_capacity
from t2ifb.learning.cost import LOOK, OPTIMISER, ROUNDING, UPDATE, WEIGHTS, Cost

GB = 1e9
CONTEXT = 0.5 * GB
"""Bytes of a CUDA context with the loaded kernels of PyTorch, cuBLAS and cuDNN.

An estimate: 0.3 to 0.6 GB are typical. `python -m tests.gpu_check` measures it.
"""
WORKSPACE = 0.5 * GB
"""Bytes of the workspaces of cuDNN and cuBLAS, which are taken from the allocator's pool.

An estimate: an algorithm with another tensor layout copies its tensors, and input and output of the largest
convolution in Stable Diffusion's decoder, 256 and 128 channels at 512 x 512 in float32, are 0.4 GB. If memory is
short, PyTorch uses an algorithm that needs less. cuBLAS takes 8 to 32 MB.
"""
LIBRARIES = CONTEXT + WORKSPACE
SPARE = 0.05
"""Share of memory that must remain free for a run to fit. With less, the run is tight.

Kernels' temporary memory is not counted: on a CPU the peak was 1 to 2 % too low (`tests/learning/test_refl_cost.py`).
A GPU sold as 16 GB offers about 15.8 GB to programs, and a display uses some.
"""
LIFE: Sequence[str] = (LOOK, "", ROUNDING, "", OPTIMISER, UPDATE, UPDATE, "", LOOK, "", UPDATE, "", LOOK, "", UPDATE)
"""Phases of a run. At an empty name the allocator's cache is emptied.

The base model's images and the rounding measurement come first, then updates with validations between them. After that
the allocations repeat.
"""


def pool_size(update: Cost, judging: Cost) -> int:
    """Bytes of the smallest allocator pool in which all phases of a run fit.

    Args:
        update: Costs of updates.
        judging: Costs of validations of the same run.
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
            for key in left[name]:  # from the previous run of this phase: gradients live until the next update
                allocator.free(key)
            for key, size in events[name]:
                if size > 0:
                    allocator.allocate(key, size)
                else:
                    allocator.free(key)

    return smallest_capacity(replay)


def _left(events: Sequence[tuple[Hashable, int]]) -> set[Hashable]:
    """Keys of allocations that are not freed."""
    return {key for key, size in events if size > 0} - {key for key, size in events if size < 0}
