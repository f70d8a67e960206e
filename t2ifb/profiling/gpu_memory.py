"""GPU memory of a fine-tuning run: live tensors, PyTorch's caching allocator, libraries.

The allocator's rules are those of `c10/cuda/CUDACachingAllocator.cpp` with default settings and one stream.
Nothing is allocated.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Sequence

from t2ifb.profiling.cost import LOOK, OPTIMISER, ROUNDING, UPDATE, WEIGHTS, Cost

MIB = 1 << 20
ROUND = 512
"""Bytes: sizes are rounded up to multiples of this."""
SMALL = 1 * MIB
"""Bytes: up to this size an allocation comes from segments of `SMALL_SEGMENT`, which contain nothing larger."""
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
OWN_SEGMENT = 10 * MIB
"""Bytes: from this size, an allocation without a fitting free block gets a segment of its own size."""
SEGMENT_ROUND = 2 * MIB
TOLERANCE = 32 * MIB
"""Bytes: tolerance of `smallest_capacity`, which may be too large by this much."""


class PoolExhausted(Exception):
    """An allocation does not fit, even after releasing all cached segments."""


class _Block:
    """Block of a segment, linked with its neighbours."""

    __slots__ = ("after", "before", "free", "offset", "segment", "size", "small")

    def __init__(self, segment: int, offset: int, size: int, small: bool) -> None:
        self.segment, self.offset, self.size, self.small, self.free = segment, offset, size, small, False
        self.before: _Block | None = None
        self.after: _Block | None = None


class CachingAllocator:
    """Allocator that takes segments from a device, cuts them into blocks and caches freed ones.

    Attributes:
        capacity: Maximum bytes of all segments together.
        reserved: Bytes of the current segments.
        peak_reserved: Maximum of `reserved` so far.
        allocated: Bytes of the blocks in use, rounded up.
        peak_allocated: Maximum of `allocated` so far.
    """

    def __init__(self, capacity: float = math.inf) -> None:
        self.capacity = capacity
        self.reserved = self.peak_reserved = self.allocated = self.peak_allocated = 0
        self._free: dict[bool, list[tuple[int, int, int, _Block]]] = {True: [], False: []}
        self._used: dict[Hashable, _Block] = {}
        self._segments = 0

    def allocate(self, key: Hashable, size: int) -> None:
        """Allocate `size` bytes, identified by `key` until they are freed.

        Raises:
            PoolExhausted: The allocation does not fit.
        """
        size = max(ROUND, -(-size // ROUND) * ROUND)
        small = size <= SMALL
        pool = self._free[small]
        found = bisect_left(pool, (size,))
        block = pool.pop(found)[3] if found < len(pool) else self._new_segment(size, small)
        rest = block.size - size
        if rest >= ROUND if small else rest > SMALL:
            tail = _Block(block.segment, block.offset + size, rest, small)
            tail.before, tail.after = block, block.after
            if block.after is not None:
                block.after.before = tail
            block.after, block.size = tail, size
            self._put(tail)
        block.free = False
        self._used[key] = block
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)

    def free(self, key: Hashable) -> None:
        """Free the allocation of `key`. Unknown keys are ignored."""
        block = self._used.pop(key, None)
        if block is None:
            return
        self.allocated -= block.size
        before, after = block.before, block.after
        if after is not None and after.free:
            self._take(after)
            block.size, block.after = block.size + after.size, after.after
            if after.after is not None:
                after.after.before = block
        if before is not None and before.free:
            self._take(before)
            before.size, before.after = before.size + block.size, block.after
            if block.after is not None:
                block.after.before = before
            block = before
        self._put(block)

    def empty_cache(self) -> None:
        """Return completely free segments to the device."""
        for small, pool in self._free.items():
            kept = [entry for entry in pool if entry[3].before is not None or entry[3].after is not None]
            self.reserved -= sum(entry[0] for entry in pool) - sum(entry[0] for entry in kept)
            self._free[small] = kept

    def _new_segment(self, size: int, small: bool) -> _Block:
        if small:
            length = SMALL_SEGMENT
        else:
            length = LARGE_SEGMENT if size < OWN_SEGMENT else -(-size // SEGMENT_ROUND) * SEGMENT_ROUND
        if self.reserved + length > self.capacity:
            self.empty_cache()
        if self.reserved + length > self.capacity:
            raise PoolExhausted(f"{size} bytes do not fit beside {self.allocated} of {self.capacity}")
        self.reserved += length
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        self._segments += 1
        return _Block(self._segments, 0, length, small)

    def _put(self, block: _Block) -> None:
        block.free = True
        insort(self._free[block.small], (block.size, block.segment, block.offset, block))

    def _take(self, block: _Block) -> None:
        pool = self._free[block.small]
        del pool[bisect_left(pool, (block.size, block.segment, block.offset))]


def smallest_capacity(replay: Callable[[CachingAllocator], None]) -> int:
    """Smallest capacity in bytes, within `TOLERANCE`, in which a sequence of allocations succeeds.

    Args:
        replay: Replays the sequence on an allocator.
    """
    unlimited = CachingAllocator()
    replay(unlimited)
    too_small, enough = unlimited.peak_allocated - 1, unlimited.peak_reserved
    while enough - too_small > TOLERANCE:
        allocator = CachingAllocator((too_small + enough) // 2)
        try:
            replay(allocator)
        except PoolExhausted:
            too_small = int(allocator.capacity)
        else:
            enough = allocator.peak_reserved
    return enough


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

Kernels' temporary memory is not counted: on a CPU the peak was 1 to 2 % too low (`tests/profiling/test_savings.py`).
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
