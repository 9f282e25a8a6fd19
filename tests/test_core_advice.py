"""In the core: frames that nothing maps, and what madvise, mprotect and mlock do to a range."""

from __future__ import annotations

import pytest
from scenarios_small import BLOCK, MIB, PAGE

from simvm import _core
from simvm.hardware.geometry import MmuGeometry

POLICYS = 2  # a list of the reclaim policy


class Memory:
    """16 MiB of guest memory over a host of 64 MiB, and a vCPU whose kernel writes to it."""

    def __init__(self, order: int = 0, *, deposits: bool = False) -> None:
        self.host = _core.HostMemory(64 * MIB)
        self.host.set_new_list(POLICYS)
        self.table = _core.PageTable(4, self.host.frames, True)
        self.backing = _core.Backing(self.host, self.table, 7, order, 16 * MIB, deposits=deposits)
        self.space = _core.AddressSpace(0, self.table, None, 7)
        self.vcpu = _core.Vcpu(_core.Mmu(MmuGeometry.bare()))
        self.vcpu.set_costs((1_000, 10_000, 0), 0, 0, 100)

    def write(self, start: int, size: int) -> int:
        self.vcpu.queue_write(start, size)
        return self.again()

    def again(self) -> int:
        return self.vcpu.kernel_write(self.space, self.backing, 1 << 30, 1 << 40)

    def bytes_on(self, which: int) -> int:
        return self.host.list_bytes(which)


@pytest.mark.parametrize("order", [0, 1])
def test_a_held_frame_is_found_again_without_a_new_one(order: int) -> None:
    """4 MiB taken from the processor and touched again: no frame is freed, none is taken."""
    memory = Memory(order)
    memory.write(0, 4 * MIB)
    free, frames = memory.host.free_bytes, memory.table.lookup(0)
    faults = memory.vcpu.slat_faults
    taken = memory.backing.hold(0, 4 * MIB)
    assert taken == ((1024, 0, 0), (0, 2, 0))[order]
    assert memory.table.lookup(0) is None
    assert memory.table.held_pages == 1024
    assert memory.host.free_bytes == free
    assert memory.backing.backed_bytes(MIB, 3 * MIB) == 2 * MIB
    assert memory.backing.hold(0, 4 * MIB) == (0, 0, 0)  # there is nothing left to take
    assert memory.write(0, 4 * MIB) == _core.RUN_BUDGET
    assert memory.vcpu.slat_faults == faults
    assert memory.vcpu.remapped == (1024, 2)[order]
    assert memory.table.held_pages == 0
    assert memory.host.free_bytes == free
    assert memory.table.lookup(0) == frames  # the frame of before, and its D


def test_a_held_frame_can_be_freed_and_swapped() -> None:
    memory = Memory()
    empty = memory.host.free_bytes
    memory.write(0, 2 * PAGE)
    memory.backing.hold(0, 2 * PAGE)
    first, second = memory.backing.folios(0, 2 * PAGE)
    memory.host.swap_out(first, 5)
    assert memory.table.held_pages == 1
    assert memory.backing.slot_of(0) == 5
    assert memory.backing.zap(0, 2 * PAGE)[0] == (1, 0, 0)
    assert memory.table.held_pages == 0
    memory.host.frames.free_4k(memory.host.address_of(first))  # its write has ended
    assert memory.host.free_bytes == empty
    assert second != first


def test_a_boundary_splits_the_page_across_it_and_only_that() -> None:
    memory = Memory(1)
    memory.write(0, 4 * MIB)
    assert memory.backing.cut(0) == memory.backing.cut(BLOCK) == 0
    assert memory.backing.cut(BLOCK + PAGE) == 1
    assert memory.backing.cut(BLOCK + 9 * PAGE) == 0
    assert memory.table.leaves == (512, 1, 0)
    assert memory.bytes_on(POLICYS) == 4 * MIB


def test_a_marked_block_is_backed_in_small_pages() -> None:
    memory = Memory(1)
    memory.backing.mark(BLOCK + PAGE, BLOCK + 2 * PAGE, _core.CUT, True)
    memory.write(0, 3 * BLOCK)
    assert memory.table.leaves == (512, 2, 0)
    memory.backing.zap(0, 3 * BLOCK)
    memory.backing.mark(BLOCK, BLOCK + PAGE, _core.CUT, False)
    memory.write(0, 3 * BLOCK)
    assert memory.table.leaves == (0, 3, 0)
    with pytest.raises(ValueError, match="guest memory"):
        memory.backing.mark(0, 16 * MIB + PAGE, _core.CUT, True)


def test_what_is_forbidden_is_asked_for_each_time() -> None:
    """A block with a forbidden page asks for each of its pages; the others do not."""
    memory = Memory()
    memory.backing.mark(BLOCK, BLOCK + PAGE, _core.FORBIDDEN, True)
    assert memory.write(0, BLOCK) == _core.RUN_BUDGET
    assert memory.write(BLOCK, PAGE) == _core.RUN_PROTECTED
    assert memory.vcpu.fault_address == BLOCK
    memory.backing.allow(BLOCK)
    assert memory.again() == _core.RUN_BUDGET
    assert memory.write(BLOCK + PAGE, PAGE) == _core.RUN_PROTECTED
    memory.backing.mark(0, 2 * BLOCK, _core.FORBIDDEN, False)
    assert memory.again() == _core.RUN_BUDGET


def test_locked_memory_is_there_and_on_no_policys_list() -> None:
    """Of 8 MiB half is backed: mlock backs the rest, 64 folios at a time, and takes all."""
    memory = Memory()
    memory.write(2 * MIB, 4 * MIB)
    at, new, old = 0, 0, 0
    status = _core.STOP_MANY
    while status == _core.STOP_MANY:
        status, at, made, moved = memory.backing.populate(at, 8 * MIB, 64)
        assert sum(made) <= 64
        new, old = new + made[0], old + moved
    assert (status, at, new, old) == (_core.POPULATED, 8 * MIB, 1024, 1024)
    assert memory.bytes_on(_core.UNEVICTABLE_LIST) == 8 * MIB
    assert memory.bytes_on(POLICYS) == 0
    assert memory.table.held_pages == 1024  # the host has them, the SLAT finds them later
    assert memory.backing.folios(0, 8 * MIB) == []
    assert memory.backing.relist(0, 8 * MIB, POLICYS) == (2048, 0)
    assert len(memory.backing.folios(0, 8 * MIB)) == 2048


def test_locking_stops_at_what_it_cannot_do() -> None:
    memory = Memory()
    memory.write(0, PAGE)
    memory.host.swap_out(memory.backing.folios(0, PAGE)[0], 3)
    assert memory.backing.populate(0, PAGE, 1)[:2] == (_core.STOP_SWAPPED, 0)
    memory.host.set_floors(64 * MIB, 64 * MIB, 0)
    assert memory.backing.populate(PAGE, 2 * PAGE, 1)[:2] == (_core.STOP_NO_MEMORY, PAGE)


def test_a_partly_held_block_is_split_before_its_pages_change_lists() -> None:
    """Half of a 2 MiB page is unmapped, the other half locked: the first half is then free."""
    memory = Memory(1)
    memory.write(0, BLOCK)
    memory.backing.zap(0, MIB)
    assert memory.host.partial_bytes == MIB
    assert memory.backing.relist(MIB, BLOCK, _core.UNEVICTABLE_LIST) == (256, MIB)
    assert memory.host.partial_bytes == 0
    assert memory.bytes_on(_core.UNEVICTABLE_LIST) == MIB


def test_lazily_free_pages_are_told_by_their_dirty_bit() -> None:
    memory = Memory()
    memory.write(0, 4 * PAGE)
    memory.backing.hold(0, 4 * PAGE, True, True)
    memory.backing.relist(0, 4 * PAGE, _core.LAZY_LIST)
    memory.write(PAGE, PAGE)
    assert [written for _, written in memory.host.lazy(4)] == [False, True, False, False]
    assert len(memory.host.lazy(2)) == 2
    assert memory.backing.written(0, 4 * PAGE)
    assert not memory.backing.written(2 * PAGE, 4 * PAGE)
    # Write protection takes D, so what was written must leave the list for that.
    memory.backing.hold(0, 4 * PAGE, False, True)
    assert memory.bytes_on(_core.LAZY_LIST) == 3 * PAGE
    assert memory.bytes_on(POLICYS) == PAGE


def test_lists_of_a_policy_end_before_those_of_the_host() -> None:
    with pytest.raises(ValueError, match="1 to 12"):
        Memory().host.set_new_list(_core.LAZY_LIST)


def test_extents_are_in_order_and_merged() -> None:
    """Pages of a region at gPA 0, 1, 2, 5 and 4, 7: three extents."""
    memory = _core.BlockAllocator(16 * MIB)
    table = _core.PageTable(4, memory)
    region = _core.Region(1 << 30, 8 * PAGE, 0)
    for page, target in enumerate([2, 0, 1, 5, 4, 7]):
        table.map((1 << 30) + page * PAGE, (1 << 22) + target * PAGE, 0)
    base = 1 << 22
    assert region.extents(table) == [
        (base, 3 * PAGE), (base + 4 * PAGE, 2 * PAGE), (base + 7 * PAGE, PAGE)
    ]  # fmt: skip
