"""The allocator's model on sequences whose segments follow from the rules in `CUDACachingAllocator.cpp`."""

import random

import pytest

from t2ifb.diffusion.pool import MIB, TOLERANCE, CachingAllocator, PoolExhausted, smallest_capacity


def test_sizes_are_rounded_and_small_ones_share_segments() -> None:
    allocator = CachingAllocator()
    for key in range(4096):
        allocator.allocate(key, 1)
    assert (allocator.allocated, allocator.reserved) == (4096 * 512, 2 * MIB)
    allocator.allocate("one more", 513)
    assert (allocator.allocated, allocator.reserved) == (4098 * 512, 4 * MIB)


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (11 * MIB, 12 * MIB),
        (300 * MIB + 1, 302 * MIB),
    ],
)
def test_segments(size: int, segment: int) -> None:
    allocator = CachingAllocator()
    allocator.allocate(0, size)
    assert allocator.reserved == segment


def test_a_large_block_is_split_if_more_than_a_megabyte_is_left() -> None:
    for size, reserved in ((18 * MIB, 20 * MIB), (19 * MIB, 40 * MIB)):
        allocator = CachingAllocator()
        allocator.allocate("whole", 20 * MIB)
        allocator.free("whole")
        allocator.allocate("first", size)
        allocator.allocate("rest", 2 * MIB)  # what is left after 18 MB holds it
        assert allocator.reserved == reserved


def test_the_smallest_free_block_that_fits_is_taken() -> None:
    allocator = CachingAllocator()
    for key, size in (("large", 60), ("middle", 40), ("small", 20)):
        allocator.allocate(key, size * MIB)
    for key in ("large", "small", "middle"):
        allocator.free(key)
    allocator.allocate("a", 30 * MIB)  # out of the middle one
    allocator.allocate("b", 60 * MIB)
    allocator.allocate("c", 20 * MIB)
    allocator.allocate("d", 10 * MIB)
    assert allocator.reserved == 120 * MIB == allocator.allocated


@pytest.mark.parametrize("order", ["abc", "acb", "bac", "bca", "cab", "cba"])
def test_neighbours_that_are_free_become_one(order: str) -> None:
    allocator = CachingAllocator()
    allocator.allocate("abc", 60 * MIB)
    allocator.free("abc")
    for key in "abc":
        allocator.allocate(key, 20 * MIB)
    for key in order:
        allocator.free(key)
    allocator.allocate("abc", 60 * MIB)
    assert (allocator.reserved, allocator.peak_reserved) == (60 * MIB, 60 * MIB)


def test_only_segments_that_are_free_as_a_whole_are_given_back() -> None:
    allocator = CachingAllocator()
    allocator.allocate("whole", 40 * MIB)
    allocator.allocate("split", 40 * MIB)
    allocator.free("split")
    allocator.allocate("part", 20 * MIB)
    allocator.free("whole")
    allocator.empty_cache()
    assert (allocator.reserved, allocator.peak_reserved, allocator.allocated) == (40 * MIB, 80 * MIB, 20 * MIB)
    allocator.allocate("rest", 20 * MIB)
    assert allocator.reserved == 40 * MIB


def test_the_cache_is_given_back_before_memory_is_out() -> None:
    allocator = CachingAllocator(capacity=100 * MIB)
    allocator.allocate("a", 60 * MIB)
    allocator.free("a")
    allocator.allocate("b", 80 * MIB)  # no cached block is large enough
    assert allocator.reserved == 80 * MIB
    with pytest.raises(PoolExhausted):
        allocator.allocate("c", 30 * MIB)
    allocator.allocate("c", 20 * MIB)


def test_fragments_cost_memory() -> None:
    """Every other block is free, and none is large enough: half of the pool cannot be used."""

    def replay(allocator: CachingAllocator) -> None:
        allocator.allocate("all", 400 * MIB)
        allocator.free("all")
        for key in range(40):
            allocator.allocate(key, 10 * MIB)
        for key in range(0, 40, 2):
            allocator.free(key)
        allocator.allocate("large", 200 * MIB)

    assert smallest_capacity(replay) == 600 * MIB


def test_the_smallest_capacity_is_between_what_lives_and_what_is_cached() -> None:
    draw = random.Random(0)
    events: list[tuple[int, int]] = []
    alive: list[int] = []
    for key in range(2000):
        events.append((key, draw.choice([300, 70_000, 2 * MIB, 9 * MIB, 33 * MIB])))
        alive.append(key)
        while len(alive) > draw.randint(5, 40):
            events.append((alive.pop(draw.randrange(len(alive))), 0))

    def replay(allocator: CachingAllocator) -> None:
        for key, size in events:
            if size:
                allocator.allocate(key, size)
            else:
                allocator.free(key)

    unlimited = CachingAllocator()
    replay(unlimited)
    found = smallest_capacity(replay)
    assert unlimited.peak_allocated <= found <= unlimited.peak_reserved
    replay(CachingAllocator(found))
    with pytest.raises(PoolExhausted):
        replay(CachingAllocator(found - TOLERANCE))
    for key in range(2000):
        unlimited.free(key)
    unlimited.empty_cache()
    assert (unlimited.allocated, unlimited.reserved) == (0, 0)
