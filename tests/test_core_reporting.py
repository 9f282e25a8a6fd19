"""The allocator's lists of whole free blocks, and free page reporting's marks on them."""

from __future__ import annotations

import pytest

from simvm import _core

KIB, MIB = 1 << 10, 1 << 20
BLOCK, PAIR = 2 * MIB, 4 * MIB


def listed(memory: _core.BlockAllocator, lower: bool = False) -> tuple[int, int]:
    """Single blocks and pairs on the free lists of a zone."""
    return memory.free_listed(lower, False), memory.free_listed(lower, True)


def test_a_pair_is_two_free_halves_of_4_mib() -> None:
    memory = _core.BlockAllocator(10 * MIB)
    assert listed(memory) == (1, 2)  # the fifth block has no other half
    assert memory.allocate_2m() == 8 * MIB  # single blocks are used first
    assert memory.allocate_2m() == 0
    assert listed(memory) == (1, 1)
    assert memory.allocate_2m() == BLOCK
    memory.free_2m(0)
    assert listed(memory) == (1, 1)
    memory.free_2m(BLOCK)
    assert listed(memory) == (0, 2)
    assert memory.blocks_freed == 2


def test_the_upper_zone_is_used_before_the_lower() -> None:
    memory = _core.BlockAllocator(12 * MIB, lower=8 * MIB)
    taken = [memory.allocate_2m() for _ in range(4)]
    assert taken == [8 * MIB, 10 * MIB, 0, 2 * MIB]
    assert listed(memory) == (0, 0)
    assert listed(memory, lower=True) == (0, 1)
    assert (memory.free_in_zone(True), memory.free_in_zone(False)) == (PAIR, 0)
    memory.allocate_4k()
    assert memory.free_in_zone(True) == PAIR - 4 * KIB
    memory.free_2m(8 * MIB)
    assert memory.free_in_zone(False) == BLOCK
    assert memory.allocate_2m() == 8 * MIB


def test_what_is_reported_is_not_free_meanwhile_and_is_reported_once() -> None:
    memory = _core.BlockAllocator(16 * MIB)
    assert memory.isolate(False, True, 3) == [0, PAIR, 2 * PAIR]
    assert memory.free_bytes == PAIR == memory.recount()
    assert memory.reported_bytes() == 0
    memory.put_back([0, PAIR, 2 * PAIR], True)
    assert memory.free_bytes == 16 * MIB == memory.recount()
    assert memory.reported_bytes() == 12 * MIB
    assert memory.blocks_freed == 0  # so a report asks for no other
    assert memory.isolate(False, True, 32) == [3 * PAIR]
    assert not memory.has_unreported(False, True)
    assert listed(memory) == (0, 3)  # the length counts reported ones too
    assert memory.isolate(False, True, 0) == []


def test_what_is_reported_is_used_last() -> None:
    memory = _core.BlockAllocator(12 * MIB)
    memory.put_back(memory.isolate(False, True, 2), True)
    assert memory.allocate_2m() == 2 * PAIR
    assert memory.allocate_2m() == 2 * PAIR + BLOCK
    assert memory.allocate_2m() == 0


def test_the_half_that_is_left_of_a_reported_pair_is_reported_anew() -> None:
    memory = _core.BlockAllocator(4 * MIB)
    memory.put_back(memory.isolate(False, True, 1), True)
    assert memory.reported_bytes() == PAIR
    assert memory.allocate_2m() == 0
    assert memory.reported_bytes() == 0
    assert memory.has_unreported(False, False)
    memory.put_back(memory.isolate(False, False, 1), False)
    assert memory.reported_bytes() == BLOCK
    memory.free_2m(0)  # merging loses the mark of the half that had one
    assert memory.reported_bytes() == 0
    assert memory.has_unreported(False, True)


def test_a_block_that_merges_when_it_is_put_back_is_not_reported() -> None:
    memory = _core.BlockAllocator(4 * MIB)
    assert memory.allocate_2m() == 0
    taken = memory.isolate(False, False, 1)
    assert taken == [BLOCK]
    memory.free_2m(0)
    memory.put_back(taken, False)
    assert listed(memory) == (0, 1)
    assert memory.reported_bytes() == 0


def test_breaking_a_block_into_pages_loses_the_mark() -> None:
    memory = _core.BlockAllocator(2 * MIB)
    memory.put_back(memory.isolate(False, False, 1), False)
    page = memory.allocate_4k()
    assert memory.reported_bytes() == 0
    memory.free_4k(page)
    assert memory.has_unreported(False, False)


def test_what_was_not_isolated_cannot_be_put_back() -> None:
    memory = _core.BlockAllocator(6 * MIB)
    with pytest.raises(ValueError, match="not in use"):
        memory.put_back([0], False)
    taken = memory.isolate(False, False, 1)
    with pytest.raises(ValueError, match="not in use"):
        memory.put_back(taken, True)  # there is no other half
    memory.put_back(taken, False)
    assert memory.recount() == memory.free_bytes == 6 * MIB


@pytest.mark.parametrize("lower", [-1, MIB, 2 * MIB])
def test_a_zone_is_made_of_pairs(lower: int) -> None:
    with pytest.raises(ValueError, match="lower"):
        _core.BlockAllocator(8 * MIB, lower=lower)
