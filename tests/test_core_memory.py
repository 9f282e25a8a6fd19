"""Memory in the core: blocks broken and made whole, folios, backing, streams, the vCPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenarios_small import BLOCK, GIB, MIB, PAGE

from simvm import _core
from simvm.hardware.geometry import MmuGeometry

# --- blocks -----------------------------------------------------------------------------


def test_memory_is_broken_and_made_whole() -> None:
    memory = _core.BlockAllocator(8 * MIB)
    block = memory.allocate_2m()
    pages = [memory.allocate_4k() for _ in range(513)]
    assert memory.free_blocks == 1
    assert memory.free_bytes == 8 * MIB - BLOCK - 513 * PAGE
    assert len(set(pages)) == 513
    assert all(page // BLOCK != block // BLOCK for page in pages)
    for page in pages:
        memory.free_4k(page)
    memory.free_2m(block)
    assert (memory.free_blocks, memory.free_bytes) == (4, 8 * MIB)


def test_pages_of_different_mobility_keep_apart_until_memory_is_short() -> None:
    memory = _core.BlockAllocator(4 * MIB)
    movable, fixed = memory.allocate_4k(), memory.allocate_4k(False)
    assert movable // BLOCK != fixed // BLOCK
    rest = [memory.allocate_4k() for _ in range(2 * 512 - 2)]  # these have to mix
    assert len({movable, fixed, *rest}) == 2 * 512
    with pytest.raises(MemoryError):
        memory.allocate_4k(False)


def test_a_broken_block_is_512_pages() -> None:
    memory = _core.BlockAllocator(4 * MIB)
    block = memory.allocate_2m()
    memory.break_2m(block)
    memory.free_4k(block + 5 * PAGE)
    assert memory.allocate_4k() == block + 5 * PAGE
    memory.free_many(np.arange(block, block + BLOCK, PAGE, dtype=np.uint64))
    assert memory.free_blocks == 2


def test_1g_pages_need_an_aligned_gib_of_whole_blocks() -> None:
    memory = _core.BlockAllocator(2 * GIB + 10 * MIB)
    memory.reserve_low(3 * MIB)
    assert memory.free_bytes == 2 * GIB + 6 * MIB
    assert memory.allocate_1g() == GIB
    with pytest.raises(MemoryError):
        memory.allocate_1g()
    memory.free_1g(GIB)
    assert memory.free_bytes == memory.recount() == 2 * GIB + 6 * MIB
    assert memory.allocate_1g() == GIB
    with pytest.raises(MemoryError, match="cannot reserve"):
        memory.reserve_low(3 * MIB)


def test_what_is_not_in_use_cannot_be_given_back() -> None:
    memory = _core.BlockAllocator(GIB)
    page, block = memory.allocate_4k(), memory.allocate_2m()
    for free, address in (
        (memory.free_4k, page + PAGE), (memory.free_4k, block), (memory.free_4k, GIB),
        (memory.free_2m, page), (memory.free_2m, GIB), (memory.free_1g, 0),
        (memory.break_2m, page),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="is not in use"):
            free(address)
    memory.free_4k(page)
    with pytest.raises(ValueError, match="is not in use"):
        memory.free_4k(page)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 999)), max_size=150))
def test_the_allocator_against_a_set_of_pages(steps: list[tuple[int, int]]) -> None:
    """Nothing is given twice; free bytes are what is left; 2 MiB are found if a block is free."""
    memory = _core.BlockAllocator(8 * MIB)
    pages: list[int] = []
    blocks: list[int] = []
    used: set[int] = set()
    for action, pick in steps:
        if action <= 1:
            got = memory.allocate_4k(action == 0)
            pages.append(got)
            assert got not in used
            used.add(got)
        elif action == 2 and memory.free_blocks:
            got = memory.allocate_2m()
            blocks.append(got)
            new = set(range(got, got + BLOCK, PAGE))
            assert not used & new
            used |= new
        elif action == 3 and pages:
            page = pages.pop(pick % len(pages))
            memory.free_4k(page)
            used.remove(page)
        elif action == 4 and blocks:
            block = blocks.pop(pick % len(blocks))
            memory.free_2m(block)
            used -= set(range(block, block + BLOCK, PAGE))
        elif action == 5 and blocks:
            block = blocks.pop(pick % len(blocks))
            memory.break_2m(block)
            pages += range(block, block + BLOCK, PAGE)
        assert memory.free_bytes == memory.recount() == 8 * MIB - len(used) * PAGE
        whole = sum(
            not any(address in used for address in range(at, at + BLOCK, PAGE))
            for at in range(0, 8 * MIB, BLOCK)
        )
        assert memory.free_blocks == whole


# --- host memory and backing ------------------------------------------------------------


class Guest:
    """A guest of 64 MiB on a host of 128 MiB, that is backed by its kernel's writes."""

    def __init__(
        self, order: int = 1, deposits: bool = True, pool: int = 0, tier: int = 0
    ) -> None:
        self.host = _core.HostMemory(128 * MIB, tier)
        if pool:
            self.host.fill_pool(1, pool)
        self.free = self.host.free_bytes
        self.table = _core.PageTable(4, self.host.frames, mirrored=True)
        self.backing = _core.Backing(
            self.host, self.table, 7, order, 64 * MIB, deposits=deposits, from_pool=bool(pool)
        )
        self.space = _core.AddressSpace(0, self.table, None)
        self.vcpu = _core.Vcpu(_core.Mmu(MmuGeometry.bare()))
        self.vcpu.set_costs((1, 1, 1), 0, 0)

    def write(self, start: int, size: int) -> int:
        self.vcpu.queue_write(start, size)
        return self.vcpu.kernel_write(self.space, self.backing, 1 << 30, 1 << 40)

    def folios(self, which: int = 1) -> list[int]:
        """The folios of a list from its old end."""
        return [folio for folio, _ in self.host.scan(which, 1 << 20)]

    @property
    def held(self) -> int:
        """Bytes taken from the host."""
        return self.free - self.host.free_bytes

    @property
    def tables(self) -> int:
        table = self.table
        return (table.table_pages + table.mirror_pages + table.deposited_pages) * PAGE


@pytest.mark.parametrize("deposits", [True, False])
def test_faults_back_whole_blocks_and_tables(deposits: bool) -> None:
    guest = Guest(deposits=deposits)
    assert guest.write(PAGE, 3 * MIB) == _core.RUN_BUDGET
    assert guest.table.leaves == (0, 2, 0)
    assert guest.table.deposited_pages == (2 if deposits else 0)
    assert guest.table.table_pages == guest.table.mirror_pages == 3
    assert guest.held == 2 * BLOCK + guest.tables
    assert guest.vcpu.slat_faults == (0, 2, 0)
    leaf = guest.table.lookup(BLOCK)
    assert leaf is not None
    assert leaf.accessed
    assert leaf.dirty


def test_a_fault_that_must_leave_memory_free_stops_for_reclaim() -> None:
    guest = Guest()
    guest.host.set_floors(120 * MIB, 0, 0)
    assert guest.write(0, 64 * MIB) == _core.RUN_NO_MEMORY
    assert guest.vcpu.fault_address == guest.table.leaves[1] * BLOCK
    assert guest.host.free_bytes < 120 * MIB + 3 * BLOCK
    guest.host.set_floors(0, 0, 0)
    assert guest.vcpu.kernel_write(guest.space, guest.backing, 1000, 1 << 40) == _core.RUN_BUDGET
    assert guest.table.leaves == (0, 32, 0)


def test_huge_faults_fall_back_below_their_floor() -> None:
    guest = Guest()
    guest.host.set_floors(0, 125 * MIB, 0)
    guest.write(0, 4 * MIB)
    assert guest.table.leaves == (512, 1, 0)
    assert guest.backing.fallbacks == 512


def test_a_train_of_faults_ends() -> None:
    guest = Guest(order=0)
    guest.vcpu.queue_write(0, 100 * PAGE)
    run = guest.vcpu.kernel_write
    assert run(guest.space, guest.backing, 64, 1 << 40) == _core.RUN_TRAIN
    assert guest.vcpu.slat_faults == (64, 0, 0)
    guest.vcpu.set_costs((10, 10, 10), 0, 0)
    assert run(guest.space, guest.backing, 64, 95) == _core.RUN_TRAIN
    assert guest.vcpu.slat_faults == (74, 0, 0)  # ten of 10 ns reach 95 ns
    assert run(guest.space, guest.backing, 64, 1 << 40) == _core.RUN_BUDGET


def test_zap_gives_everything_back() -> None:
    guest = Guest()
    guest.write(0, 8 * MIB)
    leaves, splits, slots = guest.backing.zap(0, 64 * MIB)
    assert (leaves, splits, len(slots)) == ((0, 4, 0), 0, 0)
    assert guest.held == guest.tables == 2 * PAGE  # the root and its mirror
    assert guest.host.list_bytes(1) == 0


@pytest.mark.parametrize("deposits", [True, False])
def test_a_partial_zap_splits_the_mapping_and_holds_the_frame(deposits: bool) -> None:
    guest = Guest(deposits=deposits)
    guest.write(0, 4 * MIB)
    leaves, splits, _ = guest.backing.zap(MIB, 2 * MIB)
    assert (leaves, splits) == ((512, 0, 0), 2)
    assert guest.table.leaves == (512, 0, 0)
    assert guest.table.deposited_pages == 0  # the splits used them
    assert guest.host.partial_bytes == 2 * MIB
    assert guest.held == 4 * MIB + guest.tables
    # They may be split, which frees what is not mapped and puts the rest on a list ...
    assert guest.host.split_partial(2, 1) == (1, MIB)
    assert guest.host.partial_bytes == MIB
    assert guest.host.list_bytes(2) == MIB
    # ... or unmapped to the end, which frees the block.
    guest.backing.zap(0, 64 * MIB)
    assert guest.host.partial_bytes == guest.host.list_bytes(2) == 0
    assert guest.held == guest.tables == 2 * PAGE
    assert guest.host.frames.recount() == guest.host.free_bytes


def test_a_page_touched_again_after_a_partial_zap_gets_another_frame() -> None:
    guest = Guest()
    guest.write(0, BLOCK)
    guest.backing.zap(PAGE, PAGE)
    guest.write(PAGE, PAGE)
    first, again = guest.table.lookup(0), guest.table.lookup(PAGE)
    assert first is not None
    assert again is not None
    assert again.order == 0
    assert again.target // BLOCK != first.target // BLOCK
    assert guest.host.split_partial(1, 10) == (1, PAGE)
    assert guest.table.leaves == (512, 0, 0)
    assert guest.held == BLOCK + guest.tables
    claimed = np.zeros(128 * MIB // PAGE // 64 + 1, dtype=np.uint64)
    assert guest.backing.claim(claimed)
    assert int(np.bitwise_count(claimed).sum()) * PAGE == guest.held


def test_a_folio_swapped_out_whole_becomes_512_slots() -> None:
    guest = Guest()
    guest.write(0, 4 * MIB)
    old, _ = guest.folios()
    assert guest.host.order_of(old) == 1
    assert guest.host.owner_of(old) == (7, 0)
    frame = guest.host.address_of(old)
    guest.host.swap_out(old, 1024)
    assert guest.table.leaves == (0, 1, 0)
    assert guest.table.swapped_pages == 512
    assert [guest.backing.slot_of(page * PAGE) for page in (0, 1, 511)] == [1024, 1025, 1535]
    assert guest.backing.slot_of(BLOCK) is None
    assert guest.held == 4 * MIB + guest.tables  # frames are held until they are written
    guest.host.frames.free_many(np.arange(frame, frame + BLOCK, PAGE, dtype=np.uint64))
    assert guest.held == 2 * MIB + guest.tables
    # One page comes back, to a frame and a list of somebody's choice.
    assert guest.write(3 * PAGE, PAGE) == _core.RUN_SWAPPED
    assert guest.vcpu.fault_address == 3 * PAGE
    new = guest.host.frames.allocate_4k()
    assert guest.backing.swap_in(3 * PAGE, new, 2) == 1027
    with pytest.raises(KeyError):
        guest.backing.swap_in(3 * PAGE, new, 2)
    assert guest.table.swapped_pages == 511
    assert guest.host.owner_of(guest.folios(2)[0]) == (7, 3 * PAGE)
    leaf = guest.table.lookup(3 * PAGE)
    assert leaf is not None
    assert not leaf.accessed
    slots = guest.backing.destroy()
    assert sorted(slots.tolist()) == [slot for slot in range(1024, 1536) if slot != 1027]
    assert guest.held == 0


def test_a_folio_is_split_into_pages_of_a_list() -> None:
    guest = Guest()
    guest.write(0, BLOCK)
    (folio,) = guest.folios()
    guest.host.split(folio, 3)
    assert guest.table.leaves == (512, 0, 0)
    assert guest.host.list_bytes(3) == BLOCK
    assert guest.host.list_bytes(1) == 0
    pages = guest.folios(3)
    assert [guest.host.owner_of(page) for page in pages[:2]] == [(7, 0), (7, PAGE)]
    guest.host.swap_out(pages[0], 5)
    assert guest.backing.slot_of(0) == 5
    with pytest.raises(ValueError, match="not mapped"):
        guest.host.swap_out(pages[0], 6)
    with pytest.raises(ValueError, match="not a mapped 2 MiB folio"):
        guest.host.split(pages[1], 3)


def test_scanning_reads_and_clears_accessed_bits() -> None:
    guest = Guest()
    guest.write(0, 8 * MIB)
    assert [accessed for _, accessed in guest.host.scan(1, 1024)] == [True, True]
    guest.write(2 * MIB, PAGE)
    found = guest.host.scan(1, 10_000)
    assert [accessed for _, accessed in found] == [False, True, True, True]
    guest.host.move([folio for folio, _ in found[:3]], 2)
    assert (guest.host.list_bytes(1), guest.host.list_bytes(2)) == (2 * MIB, 6 * MIB)
    assert guest.folios(2) == [folio for folio, _ in found[:3]]
    with pytest.raises(ValueError, match="1 to 14"):
        guest.host.move([found[0][0]], 15)


def test_hugetlb_pages_go_whole_and_on_no_list() -> None:
    guest = Guest(pool=8 * MIB)
    assert guest.host.free_pool_bytes == 8 * MIB
    assert guest.write(0, 8 * MIB) == _core.RUN_BUDGET
    assert guest.host.free_pool_bytes == 0
    assert guest.write(8 * MIB, PAGE) == _core.RUN_POOL_EMPTY
    assert guest.held == guest.tables
    assert guest.table.deposited_pages == 0
    assert guest.host.list_bytes(1) == 0
    leaves, splits, _ = guest.backing.zap(MIB, 4 * MIB)  # 3 blocks are covered in part
    assert (leaves, splits) == ((0, 1, 0), 0)
    assert guest.host.free_pool_bytes == 2 * MIB
    guest.backing.destroy()
    assert guest.host.free_pool_bytes == 8 * MIB
    assert guest.held == 0


def test_a_pool_must_fit_and_hold_whole_pages() -> None:
    host = _core.HostMemory(64 * MIB)
    with pytest.raises(ValueError, match="whole pages"):
        host.fill_pool(1, 3 * MIB)
    with pytest.raises(MemoryError):
        host.fill_pool(1, 66 * MIB)


def test_stranded_memory_is_backed_and_free_in_the_guest() -> None:
    guest = Guest()
    memory = _core.BlockAllocator(64 * MIB)
    assert memory.allocate_2m() == 0
    page = memory.allocate_4k()
    assert page == BLOCK
    assert guest.backing.stranded_bytes(memory) == 0
    guest.write(0, 6 * MIB)  # blocks 0 (in use), 1 (one page in use), 2 (free)
    assert guest.backing.stranded_bytes(memory) == 511 * PAGE + BLOCK
    guest.backing.zap(BLOCK + PAGE, PAGE)  # splits it: counted page by page now
    assert guest.backing.stranded_bytes(memory) == 510 * PAGE + BLOCK
    memory.free_2m(0)
    assert guest.backing.stranded_bytes(memory) == 510 * PAGE + 2 * BLOCK


def test_an_owner_is_new() -> None:
    guest = Guest()
    with pytest.raises(ValueError, match="must be new"):
        _core.Backing(guest.host, guest.table, 7, 1, 0)


@given(st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 8 * 512 - 1), st.integers(1, 700)), max_size=25
))  # fmt: skip
def test_random_programs_of_the_host_lose_no_frame(steps: list[tuple[int, int, int]]) -> None:
    """Writes, zaps, splits, swap-outs and swap-ins: everything taken is owned exactly once."""
    guest = Guest()
    next_slot, in_flight = 512, 0
    for action, at, pages in steps:
        start, size = at * PAGE, min(pages, 8 * 512 - at) * PAGE
        folios = guest.folios()
        if action == 0:
            # A write of what is swapped out stops there; the rest is of no matter here.
            guest.vcpu = _core.Vcpu(_core.Mmu(MmuGeometry.bare()))
            guest.write(start, size)
        elif action == 1:
            guest.backing.zap(start, size)
        elif action == 2 and folios:
            folio = folios[at % len(folios)]
            if guest.host.order_of(folio) == 1:
                guest.host.split(folio, 1)
        elif action == 3 and folios:
            folio = folios[at % len(folios)]
            in_flight += 512 if guest.host.order_of(folio) else 1
            guest.host.swap_out(folio, next_slot)
            next_slot += 512
        elif action == 4:
            if guest.backing.slot_of(start) is not None:
                guest.backing.swap_in(start, guest.host.frames.allocate_4k(), 1)
            else:
                guest.host.split_partial(1, 1)
        mapped = guest.table.leaves[0] * PAGE + guest.table.leaves[1] * BLOCK
        frames = mapped + guest.tables + guest.host.partial_bytes + in_flight * PAGE
        assert guest.held == frames
        on_lists = guest.host.list_bytes(1)
        assert on_lists <= mapped
        claimed = np.zeros(128 * MIB // PAGE // 64 + 1, dtype=np.uint64)
        assert guest.backing.claim(claimed)
        assert int(np.bitwise_count(claimed).sum()) * PAGE == mapped + guest.tables
    guest.backing.destroy()
    assert guest.held == in_flight * PAGE
    assert guest.host.frames.recount() == guest.host.free_bytes


# --- regions, streams and the vCPU that runs them ---------------------------------------


class Process:
    """A guest process with one region, on a guest that `Guest` backs."""

    def __init__(self, size: int = 4 * MIB, order: int = 1, zeroing: bool = False) -> None:
        self.guest = Guest()
        self.memory = _core.BlockAllocator(64 * MIB)
        self.table = _core.PageTable(4, self.memory)
        self.space = _core.AddressSpace(1, self.guest.table, self.table)
        self.region = _core.Region(1 << 40, size, order, zeroing)
        self.vcpu = self.guest.vcpu
        self.vcpu.set_phase(10, 1.0)

    def run(self, stream: _core.Stream, budget: int, **limits: int) -> int:
        given = {"deadline": 1 << 50, "train": 1 << 30, "service": 1 << 40, **limits}
        return self.vcpu.run(
            self.space, self.guest.backing, self.memory, self.region, stream, budget,
            given["deadline"], given["train"], given["service"],
        )  # fmt: skip


def pages_in_order(size: int) -> _core.Stream:
    return _core.Stream.strided(np.random.PCG64(1), size, PAGE, 0, size)


def test_a_run_does_its_budget_and_touches_pages_once() -> None:
    process = Process()
    stream = pages_in_order(4 * MIB)
    assert process.run(stream, 700) == _core.RUN_BUDGET
    assert process.vcpu.done == stream.drawn == 700
    assert process.region.touched_bytes == 700 * PAGE
    assert process.run(stream, 2_000) == _core.RUN_BUDGET
    assert process.region.touched_bytes == 4 * MIB
    assert process.vcpu.guest_faults == (0, 2, 0)
    # 3 tables below the root, 2 pages, and 2 deposits; the root itself is a table from birth.
    assert process.table.table_pages == 3
    assert process.table.deposited_pages == 2
    assert process.memory.free_bytes == 64 * MIB - 4 * MIB - 5 * PAGE


def test_a_run_ends_when_its_cycles_are_used_up() -> None:
    process = Process()
    stream = pages_in_order(4 * MIB)
    process.run(stream, 1_024)
    before, done = process.vcpu.exposed_cycles, process.vcpu.done
    assert process.run(stream, 1 << 40, deadline=100_000) == _core.RUN_DEADLINE
    cycles = process.vcpu.exposed_cycles - before + 10 * (process.vcpu.done - done)
    one = cycles // (process.vcpu.done - done)
    assert 100_000 <= cycles < 100_000 + 3 * one


def test_zeroing_by_the_guest_backs_its_whole_page() -> None:
    lazy, zeroed = Process(), Process(zeroing=True)
    for process in (lazy, zeroed):
        process.guest.backing = _core.Backing(
            process.guest.host, process.guest.table, 8, 0, 64 * MIB
        )
        process.run(pages_in_order(4 * MIB), 3)
    assert lazy.vcpu.zeroed_bytes == 0
    assert zeroed.vcpu.zeroed_bytes == BLOCK
    assert zeroed.guest.table.leaves[0] - lazy.guest.table.leaves[0] == 512 - 3


def test_tell_of_pressure_and_of_missing_guest_memory() -> None:
    process = Process()
    process.guest.host.set_floors(0, 0, 128 * MIB)
    stream = pages_in_order(4 * MIB)
    assert process.run(stream, 5) == _core.RUN_PRESSURE
    assert process.vcpu.done == 0
    process.guest.host.set_floors(0, 0, 0)
    while process.memory.free_bytes > 15 * PAGE:  # tables of a fault may need as many
        process.memory.allocate_4k()
    assert process.run(stream, 5) == _core.RUN_GUEST_NO_MEMORY
    assert process.vcpu.done == stream.drawn == 0


def test_an_access_that_faulted_is_done_later_and_counted_once() -> None:
    """The digest of a stream that was stopped by faults is that of the same accesses."""
    process = Process(order=0)
    stream = pages_in_order(4 * MIB)
    reasons = set()
    while process.vcpu.done < 500:
        reasons.add(process.run(stream, 500 - process.vcpu.done, train=1))
    assert reasons == {_core.RUN_TRAIN, _core.RUN_BUDGET}
    other = pages_in_order(4 * MIB)
    other.take(500)
    assert stream.digest == other.digest
    assert process.region.touched_bytes == 500 * PAGE


def test_a_trace_is_fed_chunk_by_chunk() -> None:
    process = Process()
    stream = _core.Stream.trace(np.random.PCG64(1), 4 * MIB)
    assert process.run(stream, 10) == _core.RUN_STREAM_END
    accesses = np.array([0, 2 * PAGE << 1 | 1, (4 * MIB - 1) << 1], dtype=np.uint64)
    stream.feed(accesses)
    assert process.run(stream, 10) == _core.RUN_STREAM_END
    assert process.vcpu.done == 3
    assert process.region.touched_bytes == 3 * PAGE
    with pytest.raises(ValueError, match="within its region"):
        stream.feed(np.array([4 * MIB << 1], dtype=np.uint64))
    stream.feed(accesses)
    stream.take(1)
    with pytest.raises(ValueError, match="not used up"):
        stream.feed(accesses)


def test_a_stream_must_not_reach_beyond_its_region() -> None:
    process = Process()
    with pytest.raises(ValueError, match="beyond the region"):
        process.run(pages_in_order(8 * MIB), 1)


def test_the_guest_frees_the_end_of_a_region() -> None:
    """Extents that lie in a row come as one; tables and deposits go back to the guest."""
    process = Process(8 * MIB)
    process.run(pages_in_order(8 * MIB), 2_048)
    free = process.memory.free_bytes
    extents = process.region.unmap_tail(process.table, process.memory, 4 * MIB)
    assert sum(length for _, length in extents) == 4 * MIB
    assert process.memory.free_bytes == free + 4 * MIB + 2 * PAGE
    assert process.region.size == process.region.touched_bytes == 4 * MIB
    with pytest.raises(ValueError, match="whole pages"):
        process.region.unmap_tail(process.table, process.memory, PAGE)
    process.region.unmap_tail(process.table, process.memory, 4 * MIB)
    assert process.memory.free_bytes == 64 * MIB - PAGE  # the root of the table
    assert process.region.touched_bytes == 0


def test_where_a_region_is_held() -> None:
    process = Process(8 * MIB, order=0)
    process.run(pages_in_order(8 * MIB), 1_500)
    backing = process.guest.backing
    assert process.region.backing_of(backing, process.table) == (0, 1_500 * PAGE, 0, 0)
    (folio, *_) = process.guest.folios()
    held_by = process.guest.host.owner_of(folio)[1]
    process.guest.host.swap_out(folio, 512)
    held = process.region.backing_of(backing, process.table)
    assert held[1] + held[3] == 1_500 * PAGE
    assert held_by % BLOCK == 0


@pytest.mark.parametrize(
    ("base", "size", "order"), [(PAGE, BLOCK, 1), (0, MIB, 1), (0, 0, 0), (0, PAGE, 3)]
)
def test_regions_are_whole_guest_pages(base: int, size: int, order: int) -> None:
    with pytest.raises(ValueError, match="multiples of the guest page size"):
        _core.Region(base, size, order)


def bits() -> Any:
    return np.random.PCG64(1)


@pytest.mark.parametrize("make", [
    lambda: _core.Stream.uniform(bits(), PAGE - 1),
    lambda: _core.Stream.strided(bits(), PAGE, 0, 0, PAGE),
    lambda: _core.Stream.strided(bits(), PAGE, 64, 64, PAGE),
    lambda: _core.Stream.pointer_chase(bits(), PAGE, 2 * PAGE),
    lambda: _core.Stream.hot_cold(bits(), 4 * PAGE, 4, 0.5),
    lambda: _core.Stream.zipf(bits(), 4 * PAGE, np.zeros((4, 3), dtype=np.uint32), 1),
])  # fmt: skip
def test_streams_lie_within_their_region(make: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - each has words of its own
        make()
