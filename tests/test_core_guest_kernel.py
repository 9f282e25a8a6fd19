"""A guest's kernel in the core: lists, paging out and in, the page cache, pools, compaction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenarios_small import BLOCK, GIB, MIB, PAGE

from simvm import _core
from simvm.hardware.geometry import MmuGeometry

BASE = 1 << 40
ANON, ANON_ACTIVE, FILE, FILE_ACTIVE = 1, 2, 3, 4


class Process:
    """A process of a guest of 64 MiB, whose kernel keeps account of its memory."""

    def __init__(
        self, size: int = 4 * MIB, order: int = 1, *, memory: int = 64 * MIB, pool: int = 0,
        stale: bool = False,
    ) -> None:
        self.memory = _core.BlockAllocator(memory)
        if stale:
            self.memory.track_reuse()
        self.kernel = _core.GuestKernel(self.memory, True, 16 * MIB)
        if pool:
            self.kernel.fill_pool(order, pool)
        host = _core.HostMemory(2 * memory)
        slat = _core.PageTable(4, host.frames, mirrored=True)
        self.backing = _core.Backing(host, slat, 7, 1, memory)
        self.table = _core.PageTable(4, self.memory)
        self.kernel.add_process(self.table)
        self.space = _core.AddressSpace(1, slat, self.table)
        self.region = _core.Region(BASE, size, order, False, 1, bool(pool))
        self.vcpu = _core.Vcpu(_core.Mmu(MmuGeometry.bare()))
        self.vcpu.set_costs((1, 1, 1), 0, 0)
        self.vcpu.set_kernel(self.kernel)
        self.vcpu.set_phase(10, 1.0)

    def run(self, budget: int, stride: int = PAGE, start: int = 0) -> int:
        size = self.region.size
        stream = _core.Stream.strided(np.random.PCG64(1), size, stride, start, size - start)
        return self.vcpu.run(
            self.space, self.backing, self.memory, self.region, stream, budget,
            1 << 50, 1 << 30, 1 << 40,
        )  # fmt: skip

    def pages(self, which: int) -> list[int]:
        """The pages of a list from its old end."""
        return [page for page, _ in self.kernel.scan(which, 1 << 20)]

    def free(self, size: int) -> list[tuple[int, int]]:
        return self.region.unmap_tail(self.table, self.memory, size, self.kernel)


def half_huge() -> Process:
    """4 MiB: a 2 MiB page, and 2 MiB in small ones, for want of memory above the low mark."""
    process = Process()
    process.run(512)
    process.kernel.set_floors(0, 64 * MIB, 0)
    process.run(512, start=BLOCK)
    process.kernel.set_floors(0, 0, 0)
    return process


def test_what_programs_map_is_on_the_inactive_list_and_was_used() -> None:
    process = half_huge()
    assert process.kernel.list_bytes(ANON) == 4 * MIB
    seen = process.kernel.scan(ANON, 1 << 20)
    assert [process.kernel.order_of(page) for page, _ in seen] == [1] + [0] * 512
    assert all(used for _, used in seen)
    assert not any(used for _, used in process.kernel.scan(ANON, 1 << 20))
    assert process.kernel.owner_of(seen[1][0]) == (1, BASE + BLOCK)
    process.free(4 * MIB)
    assert process.kernel.list_bytes(ANON) == 0


def test_a_page_goes_out_and_comes_back() -> None:
    process = half_huge()
    small = process.pages(ANON)[-1]  # the last page of the region
    address, va = process.kernel.address_of(small), BASE + 4 * MIB - PAGE
    process.kernel.page_out(small, 33)
    assert process.kernel.slot_of(1, va) == 33
    assert process.kernel.swapped_bytes == PAGE
    assert process.memory.free_bytes == process.memory.recount()
    process.memory.free_4k(address)
    assert process.run(1, start=4 * MIB - PAGE) == _core.RUN_GUEST_SWAPPED
    assert process.vcpu.fault_address == va
    frame = process.memory.allocate_4k()
    assert process.kernel.page_in(1, va, frame, ANON_ACTIVE) == 33
    assert process.run(1, start=4 * MIB - PAGE) == _core.RUN_BUDGET
    assert process.kernel.list_bytes(ANON_ACTIVE) == PAGE
    with pytest.raises(KeyError):
        process.kernel.page_in(1, va, frame, ANON)


def test_freeing_gives_swap_slots_back() -> None:
    process = Process(1 * MIB, order=0)
    process.run(256)
    for slot, page in enumerate(process.pages(ANON)):
        process.kernel.page_out(page, slot)
        process.memory.free_4k(process.kernel.address_of(page))
    process.free(1 * MIB)
    assert process.kernel.freed_slots == list(range(256))
    assert process.memory.free_bytes == 64 * MIB - PAGE  # the root of the table


def test_a_huge_page_is_split_before_it_goes_out() -> None:
    process = Process(BLOCK)
    process.run(512)
    (huge,) = process.pages(ANON)
    with pytest.raises(ValueError, match="not a mapped 4 KiB page"):
        process.kernel.page_out(huge, 0)
    deposits = process.table.deposited_pages
    process.kernel.split(huge, ANON)
    assert process.table.leaves == (512, 0, 0)
    assert process.table.deposited_pages == deposits - 1
    assert process.kernel.list_bytes(ANON) == BLOCK
    assert len(process.pages(ANON)) == 512


def test_floors_stop_a_fault_and_wake_kswapd_before() -> None:
    process = Process(4 * MIB, order=0)
    process.run(1)
    free = process.memory.free_bytes
    process.kernel.set_floors(0, 0, free - 10 * PAGE)
    assert process.run(100) == _core.RUN_GUEST_PRESSURE
    assert process.memory.free_bytes == free - 11 * PAGE
    process.kernel.set_floors(free - 20 * PAGE - 16 * PAGE, 0, 0)
    assert process.run(100) == _core.RUN_GUEST_NO_MEMORY
    assert process.memory.free_bytes == free - 21 * PAGE
    huge = Process(4 * MIB)
    huge.kernel.set_floors(0, huge.memory.free_bytes - BLOCK, 0)
    huge.run(1)
    assert huge.vcpu.guest_faults == (1, 0, 0)


def test_the_second_use_of_a_cached_page_makes_it_active() -> None:
    process = Process()
    kernel = process.kernel
    assert kernel.use_file(10, 4) == [10, 11, 12, 13]
    for page in range(10, 14):
        kernel.cache(page, process.memory.allocate_4k(), dirty=page == 13)
    assert (kernel.cache_bytes, kernel.dirty_bytes) == (4 * PAGE, PAGE)
    assert kernel.use_file(9, 2, write=True) == [9]
    assert kernel.list_bytes(FILE_ACTIVE) == PAGE
    kernel.scan(FILE, 99)  # forgets the reading of 11, 12 and 13
    assert kernel.use_file(11, 1, write=True) == []
    assert kernel.list_bytes(FILE_ACTIVE) == PAGE
    assert [used for _, used in kernel.scan(FILE, 99)] == [True, False, False]
    assert kernel.dirty_bytes == 3 * PAGE
    (active,) = process.pages(FILE_ACTIVE)
    assert kernel.owner_of(active) == (0, 10 * PAGE)
    address, dirty = kernel.uncache(active)
    assert dirty
    process.memory.free_4k(address)
    assert (kernel.cache_bytes, kernel.dirty_bytes) == (3 * PAGE, 2 * PAGE)
    with pytest.raises(ValueError, match="is on no list"):
        kernel.uncache(active)
    with pytest.raises(ValueError, match="files end"):
        kernel.use_file(16 * MIB // PAGE, 1)


@pytest.mark.parametrize(("order", "size"), [(1, BLOCK), (2, GIB)])
def test_a_region_takes_huge_pages_from_the_pool(order: int, size: int) -> None:
    process = Process(2 * size, order, memory=4 * size, pool=size)
    free = process.memory.free_bytes
    assert process.run(2, stride=size) == _core.RUN_GUEST_POOL_EMPTY
    assert process.table.leaves[order] == 1
    assert process.kernel.free_pool_bytes(order) == 0
    assert process.table.deposited_pages == 0
    process.free(2 * size)
    assert process.kernel.free_pool_bytes(order) == size
    assert process.memory.free_bytes == free
    with pytest.raises(MemoryError, match="cannot hold"):
        _core.GuestKernel(process.memory).fill_pool(order, 4 * size)


def test_collapse_frees_the_pages_and_keeps_their_table_for_a_split() -> None:
    process = Process(BLOCK, order=0)
    process.run(300)
    kernel, tables = process.kernel, process.table.table_pages
    assert kernel.mapped_around(1, BASE) == 300
    block = process.memory.allocate_2m()
    free = process.memory.free_bytes
    assert kernel.collapse(1, BASE + 5 * PAGE, block) == 300
    assert process.memory.free_bytes == process.memory.recount() == free + 300 * PAGE
    assert process.table.leaves == (0, 1, 0)
    assert (process.table.table_pages, process.table.deposited_pages) == (tables - 1, 1)
    leaf = process.table.lookup(BASE + BLOCK - PAGE)
    assert leaf is not None
    assert (leaf.target, leaf.accessed) == (block, True)
    assert kernel.mapped_around(1, BASE) is None
    (huge,) = process.pages(ANON)
    kernel.split(huge, ANON)
    process.free(BLOCK)
    assert process.memory.free_bytes == 64 * MIB - PAGE


def test_compaction_empties_a_block_of_what_can_move() -> None:
    """Two blocks broken by programs and files; one by a page of the kernel's own."""
    memory = _core.BlockAllocator(6 * MIB)
    kernel = _core.GuestKernel(memory, True, MIB)
    for number, at in enumerate((0, BLOCK)):
        memory.claim(at + 7 * PAGE)
        kernel.cache(number, at + 7 * PAGE, dirty=True)
    memory.claim(2 * BLOCK, movable=False)
    assert memory.free_blocks == 0
    whole, scanned, moved = kernel.compact()
    assert (whole, scanned, memory.free_blocks) == (True, 1, 1)
    assert moved.tolist() == [[7 * PAGE, BLOCK, 0, 0]]
    assert kernel.dirty_bytes == 2 * PAGE
    assert memory.free_bytes == memory.recount() == 6 * MIB - 3 * PAGE
    # Nothing moves into the kernel's block, nor into a whole one.
    assert not kernel.compact()[0]


def test_a_page_of_a_program_moves_with_its_mapping() -> None:
    process = Process(64 * PAGE, order=0, memory=8 * MIB)
    process.run(64)
    process.memory.claim(6 * MIB)  # a page on nobody's list, in another block with room
    before = process.table.lookup(BASE + 9 * PAGE)
    whole, _, moved = process.kernel.compact()
    assert whole
    rows = {int(row[3]): (int(row[0]), int(row[1])) for row in moved}
    leaf = process.table.lookup(BASE + 9 * PAGE)
    assert before is not None
    assert leaf is not None
    assert rows[BASE + 9 * PAGE] == (before.target, leaf.target)
    assert leaf.accessed
    process.free(64 * PAGE)
    assert process.memory.free_bytes == 8 * MIB - 2 * PAGE


def test_what_was_used_before_is_zeroed_though_nobody_asked() -> None:
    """Freed memory is stale until it is used again or the host has dropped it."""
    process = Process(4 * MIB, stale=True)
    process.run(1_024)
    assert process.vcpu.zeroed_bytes == 0
    extents = process.free(4 * MIB)
    ((start, length),) = extents
    assert process.memory.is_stale(start)
    assert process.memory.is_stale(start + BLOCK)
    process.region = _core.Region(BASE, 4 * MIB, 1, False, 1)
    process.run(1)
    assert process.vcpu.zeroed_bytes == process.vcpu.reuse_bytes == BLOCK
    assert process.memory.is_stale(start) != process.memory.is_stale(start + BLOCK)
    process.free(4 * MIB)
    process.backing.zap(start, length)
    process.backing.forget_stale(process.memory, start, length)
    process.region = _core.Region(BASE, 4 * MIB, 1, False, 1)
    process.run(1_024)
    assert process.vcpu.reuse_bytes == BLOCK


def test_only_a_free_block_can_be_claimed_from() -> None:
    memory = _core.BlockAllocator(4 * MIB)
    memory.claim(5 * PAGE)
    assert memory.allocate_4k() == 0
    with pytest.raises(ValueError, match="is not free"):
        memory.claim(0)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9_999)), max_size=120))
def test_random_programs_of_the_kernel_lose_no_page(steps: list[tuple[int, int]]) -> None:
    """Whatever is done, memory is what the lists, tables and the held pages add up to."""
    process = Process(6 * MIB, memory=16 * MIB)
    kernel, memory = process.kernel, process.memory
    held: list[int] = []
    slot = 0
    for action, pick in steps:
        listed = process.pages(ANON) + process.pages(ANON_ACTIVE)
        files = process.pages(FILE) + process.pages(FILE_ACTIVE)
        if action == 0:
            process.run(pick % 700, start=pick % 1_536 * PAGE)
        elif action == 1 and listed:
            folio = listed[pick % len(listed)]
            if kernel.order_of(folio):
                kernel.split(folio, ANON)
            else:
                kernel.page_out(folio, slot)
                slot += 1
                memory.free_4k(kernel.address_of(folio))
        elif action == 2 and memory.free_bytes > MIB:
            for page in kernel.use_file(pick % 4_000, 16, write=bool(pick & 1)):
                kernel.cache(page, memory.allocate_4k())
        elif action == 3 and files:
            memory.free_4k(kernel.uncache(files[pick % len(files)])[0])
        elif action == 4:
            at = BASE + pick % 3 * BLOCK
            if (kernel.mapped_around(1, at) or -1) > 0 and memory.free_blocks:
                kernel.collapse(1, at, memory.allocate_2m())
        elif action == 5:
            kernel.compact()
        elif action == 6 and memory.free_bytes > MIB:
            held.append(memory.allocate_4k(False))
        tables = process.table.table_pages + process.table.deposited_pages
        lists = sum(kernel.list_bytes(which) for which in (ANON, ANON_ACTIVE, FILE, FILE_ACTIVE))
        used = lists + (tables + len(held)) * PAGE
        assert memory.free_bytes == memory.recount() == 16 * MIB - used
        leaves = process.table.leaves
        assert leaves[0] * PAGE + leaves[1] * BLOCK == lists - kernel.cache_bytes
