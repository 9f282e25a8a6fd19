"""Shadow paging in the core: fills, traps, the reverse map, and what host changes drop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenarios_small import BLOCK, MIB, PAGE

from simvm import _core
from simvm.hardware import load_cpu
from simvm.hardware.geometry import MmuGeometry

BASE = 1 << 40
MEMORY = 64 * MIB
GEOMETRY = load_cpu("skylake_sp").geometry
ORDER = {PAGE: 0, BLOCK: 1}


class Guest:
    """A guest of 64 MiB with one process and one region, on a host of 128 MiB."""

    def __init__(
        self, guest_page: int = PAGE, host_page: int = PAGE, size: int = 8 * MIB,
        geometry: MmuGeometry = GEOMETRY, pool: int = 0,
    ) -> None:  # fmt: skip
        self.host = _core.HostMemory(2 * MEMORY)
        if pool:
            self.host.fill_pool(1, pool)
        self.free = self.host.free_bytes
        self.table = _core.PageTable(4, self.host.frames)
        self.shadow = _core.Shadow(MEMORY, write_ns=10, fill_ns=1000)
        self.backing = _core.Backing(
            self.host, self.table, 3, ORDER[host_page], MEMORY, from_pool=bool(pool),
            shadow=self.shadow,
        )  # fmt: skip
        self.memory = _core.BlockAllocator(MEMORY)
        self.guest_table = _core.PageTable(4, self.memory)
        self.shadow_table = _core.PageTable(4, self.host.frames, mirrored=True)
        self.shadow.add(self.guest_table, self.shadow_table)
        self.space = _core.AddressSpace(1, self.shadow_table)
        self.region = _core.Region(BASE, size, ORDER[guest_page])
        self.mmu = _core.Mmu(geometry, targets=True)
        self.vcpu = _core.Vcpu(self.mmu)
        self.vcpu.set_costs((1, 1, 1), 0, 0)
        self.vcpu.set_phase(1, 1.0)
        self.in_flight = 0   # pages swapped out and not written yet

    def run(self, accesses: int, seed: int = 1, writes: float = 0.5) -> None:
        """Uniform accesses to the region; what is swapped out comes back."""
        bits = np.random.PCG64(seed)
        stream = _core.Stream.uniform(bits, self.region.size, writes)
        left = accesses
        while left:
            before = self.vcpu.done
            reason = self.vcpu.run(
                self.space, self.backing, self.memory, self.region, stream, left, 1 << 40,
                1 << 30, 1 << 40,
            )  # fmt: skip
            left -= self.vcpu.done - before
            if reason == _core.RUN_SWAPPED:
                address = self.vcpu.fault_address
                assert self.backing.slot_of(address) is not None
                self.backing.swap_in(address, self.host.frames.allocate_4k(), 1)
            else:
                assert reason == _core.RUN_BUDGET

    def touch(self, offset: int, write: bool = False) -> None:
        """One access."""
        stream = _core.Stream.trace(np.random.PCG64(1), self.region.size)
        stream.feed(np.array([offset << 1 | write], dtype=np.uint64))
        assert self.vcpu.run(
            self.space, self.backing, self.memory, self.region, stream, 1, 1 << 40, 1 << 30,
            1 << 40,
        ) == _core.RUN_BUDGET  # fmt: skip

    def swap_out(self, folio: int, slot: int) -> None:
        self.in_flight += 512 if self.host.order_of(folio) else 1
        self.host.swap_out(folio, slot)

    def free_tail(self, size: int) -> None:
        """What a guest's kernel and its host do when the program frees memory."""
        for start, length in self.region.unmap_tail(self.guest_table, self.memory, size):
            self.shadow.drop(start, length)

    def folios(self) -> list[int]:
        return [folio for folio, _ in self.host.scan(1, 1 << 20)]

    def folio_at(self, address: int) -> int:
        """The folio that backs a guest-physical address."""
        return next(
            folio for folio in self.folios()
            if 0 <= address - self.host.owner_of(folio)[1] < PAGE << 9 * self.host.order_of(folio)
        )

    def gpa(self, offset: int) -> int:
        """Where a byte of the region lies in guest memory."""
        leaf = self.guest_table.lookup(BASE + offset)
        assert leaf is not None
        return leaf.target + BASE + offset - leaf.base

    def shadow_leaves(self) -> list[_core.Leaf]:
        found = []
        va = BASE
        while va < BASE + self.region.size:
            leaf = self.shadow_table.lookup(va)
            if leaf is not None:
                found.append(leaf)
            va += PAGE if leaf is None else PAGE << 9 * leaf.order
        return found

    def check_translation(self, va: int) -> None:
        """What the processor makes of an address is where guest and host have it now, or none."""
        status, address = self.mmu.translate(self.space, va)
        guest = self.guest_table.lookup(va)
        host = None if guest is None else self.table.lookup(guest.target + va - guest.base)
        if status == _core.OK:
            assert guest is not None
            assert host is not None
            assert address == host.target + guest.target + va - guest.base - host.base
        else:
            assert self.shadow_table.lookup(va) is None

    def check(self) -> None:
        """Each shadow leaf maps what the guest and the host map there now; nothing is lost."""
        leaves = self.shadow_leaves()
        assert len(leaves) == sum(self.shadow_table.leaves)  # none outside the region
        for leaf in leaves:
            guest = self.guest_table.lookup(leaf.base)
            assert guest is not None
            gpa = guest.target + leaf.base - guest.base
            host = self.table.lookup(gpa)
            assert host is not None
            assert leaf.order <= min(guest.order, host.order)
            assert leaf.target == host.target + gpa - host.base
        assert self.backing.shadow_agrees()
        held = self.free - self.host.free_bytes
        tables = self.table.table_pages + self.table.deposited_pages + self.shadow.table_pages
        mapped = self.table.leaves[0] * PAGE + self.table.leaves[1] * BLOCK
        claimed = np.zeros(2 * MEMORY // PAGE // 64 + 1, dtype=np.uint64)
        assert self.backing.claim(claimed)
        assert int(np.bitwise_count(claimed).sum()) == mapped // PAGE + tables
        in_pool = mapped if self.host.free_pool_bytes else 0
        loose = self.host.partial_bytes + self.in_flight * PAGE
        assert held == mapped + tables * PAGE + loose - in_pool


@pytest.mark.parametrize(
    ("guest_page", "host_page", "loads"),
    [(PAGE, PAGE, 4), (BLOCK, PAGE, 4), (PAGE, BLOCK, 4), (BLOCK, BLOCK, 3)],
)
def test_a_walk_has_one_dimension(guest_page: int, host_page: int, loads: int) -> None:
    """A leaf of the smaller size; nested, the same walks load 24 (4K + 4K) or 15 (2M + 2M)."""
    guest = Guest(guest_page, host_page, geometry=MmuGeometry.bare())
    guest.run(3_000)
    counts = guest.vcpu.counters()
    assert counts["walks"] > 8
    assert counts["walk_loads"] == counts["host_loads"] == loads * counts["walks"]
    assert counts["guest_loads"] == 0
    filled = [0, 0, 0]
    filled[loads == 3] = guest.shadow.fills
    assert list(guest.shadow.leaves) == filled
    guest.check()


def test_every_entry_that_the_guest_writes_traps() -> None:
    guest = Guest()
    guest.touch(0)
    assert guest.shadow.writes == 4  # three tables linked, and the leaf
    assert (guest.shadow.fills, guest.shadow.reflected) == (1, 1)
    guest.touch(5 * PAGE)
    assert guest.shadow.writes == 5
    guest.touch(BLOCK)
    assert guest.shadow.writes == 7
    guest.touch(0)  # the entry is there
    assert (guest.shadow.writes, guest.shadow.fills) == (7, 3)
    assert guest.vcpu.guest_faults == (3, 0, 0)
    huge = Guest(BLOCK, BLOCK)
    huge.touch(0)
    assert huge.shadow.writes == 3  # two tables and a leaf; the deposited table is not linked


def test_traps_and_fills_use_up_a_train() -> None:
    """10 ns an entry and 1,000 ns an exit: a budget of service ends the run."""
    guest = Guest()
    stream = _core.Stream.strided(np.random.PCG64(1), 8 * MIB, PAGE, 0, 8 * MIB)
    reason = guest.vcpu.run(
        guest.space, guest.backing, guest.memory, guest.region, stream, 100, 1 << 40, 1 << 30,
        10_000,
    )  # fmt: skip
    assert reason == _core.RUN_TRAIN
    assert guest.shadow.fills + guest.shadow.reflected == 10
    assert guest.vcpu.done == 5


def test_the_host_fills_what_it_has_backed_without_another_fault() -> None:
    guest = Guest(host_page=BLOCK)
    guest.run(5_000)
    faults = sum(guest.vcpu.slat_faults)
    assert faults < 10
    assert guest.shadow.fills == guest.vcpu.guest_faults[0] > 1_000


@pytest.mark.parametrize("guest_page", [PAGE, BLOCK])
def test_a_folio_is_as_young_as_its_shadow_leaves(guest_page: int) -> None:
    """The processor sets A in shadow leaves alone; the host finds it through the reverse map."""
    guest = Guest(guest_page, BLOCK)
    for offset in range(0, 8 * MIB, PAGE):
        guest.touch(offset)
    last = guest.gpa(8 * MIB - PAGE) & -BLOCK

    def young() -> set[int]:
        return {
            guest.host.owner_of(folio)[1]
            for folio, accessed in guest.host.scan(1, 1 << 20) if accessed
        }  # fmt: skip

    assert len(young()) >= 4
    assert young() == set()
    guest.touch(8 * MIB - PAGE)  # in the TLB: the processor walks nothing, so nothing is young
    assert young() == set()
    guest.mmu.flush_all()
    guest.touch(8 * MIB - PAGE)
    assert young() == {last}


def test_a_split_drops_shadow_leaves_and_keeps_their_accessed_bits() -> None:
    guest = Guest(BLOCK, BLOCK)
    guest.touch(0)
    folio = guest.folio_at(guest.gpa(0))  # clears A, which a walk sets again
    guest.mmu.flush_all()
    guest.touch(0, write=True)
    assert guest.shadow.leaves == (0, 1, 0)
    guest.host.split(folio, 1)
    guest.mmu.flush_all()
    assert guest.shadow.leaves == (0, 0, 0)
    page = guest.table.lookup(guest.gpa(7 * PAGE))
    assert page is not None
    assert (page.order, page.accessed, page.dirty) == (0, True, True)
    guest.check()
    guest.touch(0)
    assert guest.shadow.leaves == (1, 0, 0)  # of the size that the host has now
    guest.check()


def test_a_partial_unmapping_drops_the_whole_shadow_leaf_and_keeps_what_it_knew() -> None:
    guest = Guest(BLOCK, BLOCK)
    guest.touch(0, write=True)
    guest.folio_at(guest.gpa(0))  # clears A, which a walk sets again
    guest.mmu.flush_all()
    guest.touch(0, write=True)
    guest.backing.zap(guest.gpa(PAGE), PAGE)
    guest.mmu.flush_all()
    assert guest.shadow.leaves == (0, 0, 0)
    rest = guest.table.lookup(guest.gpa(2 * PAGE))
    assert rest is not None
    assert (rest.order, rest.accessed, rest.dirty) == (0, True, True)
    guest.check()


def test_freed_tables_of_the_shadow_are_given_back() -> None:
    guest = Guest()
    guest.run(20_000)
    assert guest.shadow.table_pages == 2 * (3 + 4)  # 8 MiB; a page beside each names its pages
    guest.free_tail(3 * MIB)
    guest.mmu.flush_all()
    assert guest.shadow.table_pages == 2 * (3 + 3)
    guest.check()
    guest.free_tail(5 * MIB)
    assert guest.shadow.table_pages == 2
    assert guest.shadow.leaves == (0, 0, 0)
    guest.backing.destroy()
    assert guest.free == guest.host.free_bytes == guest.host.frames.recount()
    assert guest.shadow.table_pages == 0


def test_a_guest_table_that_is_swapped_out_must_come_back_to_be_read() -> None:
    guest = Guest()
    guest.touch(0)
    (tables,) = {
        guest.host.owner_of(folio)[1] for folio in guest.folios()
    } & {guest.guest_table.root}  # fmt: skip
    guest.swap_out(guest.folio_at(tables), 77)
    guest.mmu.flush_all()
    guest.touch(0)  # the shadow leaf is still there
    stream = _core.Stream.trace(np.random.PCG64(1), guest.region.size)
    stream.feed(np.array([PAGE << 1], dtype=np.uint64))
    assert guest.vcpu.run(
        guest.space, guest.backing, guest.memory, guest.region, stream, 1, 1 << 40, 1 << 30,
        1 << 40,
    ) == _core.RUN_SWAPPED  # fmt: skip
    assert guest.vcpu.fault_address == tables


def test_hugetlb_backs_a_guest_under_shadow_paging() -> None:
    guest = Guest(PAGE, BLOCK, pool=32 * MIB)
    guest.run(5_000)
    guest.check()
    guest.backing.zap(0, MEMORY)
    guest.mmu.flush_all()
    assert guest.shadow.leaves == (0, 0, 0)
    assert guest.host.free_pool_bytes == 32 * MIB


def test_the_thorough_check_sees_a_change_behind_its_back() -> None:
    for change in ("host", "guest", "shadow"):
        guest = Guest()
        guest.run(100)
        assert guest.backing.shadow_agrees()
        va = guest.shadow_leaves()[3].base
        if change == "host":
            guest.table.unmap(guest.gpa(va - BASE))
        elif change == "guest":
            guest.guest_table.unmap(va)
        else:
            guest.shadow_table.map(BASE + 64 * MIB, 0, 0)
        assert not guest.backing.shadow_agrees()


def test_a_shadow_table_has_the_levels_of_its_guest() -> None:
    guest = Guest()
    with pytest.raises(ValueError, match="has the levels"):
        guest.shadow.add(guest.guest_table, _core.PageTable(5, guest.host.frames))


@given(
    st.sampled_from([PAGE, BLOCK]), st.sampled_from([PAGE, BLOCK]),
    st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 16 * 512 - 1), st.integers(1, 700)),
        max_size=20,
    ),
)  # fmt: skip
def test_no_shadow_leaf_maps_a_frame_that_the_host_has_taken(
    guest_page: int, host_page: int, steps: list[tuple[int, int, int]]
) -> None:
    """Accesses, zaps, swap-outs, splits and frees in any order, each with the flush it needs."""
    guest = Guest(guest_page, host_page)
    slot = 512
    for action, at, pages in [(0, 0, 500), *steps]:
        folios = guest.folios() if 2 <= action <= 3 else []
        if action <= 1 and guest.region.size:
            guest.run(pages, seed=at)
        elif action == 2 and folios:
            guest.swap_out(folios[at % len(folios)], slot)
            slot += 512
        elif action == 3 and folios:
            huge = [folio for folio in folios if guest.host.order_of(folio)]
            if huge:
                guest.host.split(huge[at % len(huge)], 1)
        elif action == 4:
            guest.backing.zap(at * PAGE, pages * PAGE)
        elif action == 5:
            guest.host.split_partial(1, 1)
        elif action == 6 and guest.region.size:
            guest.free_tail(min(guest.region.size, -(-pages * PAGE // guest_page) * guest_page))
            guest.mmu.flush_asid(1)
        if 2 <= action <= 5:
            guest.mmu.flush_guest()
        for offset in range(0, guest.region.size, 37 * PAGE):
            guest.check_translation(BASE + offset)
        guest.check()
    guest.backing.destroy()
    assert guest.free - guest.host.free_bytes == guest.in_flight * PAGE
    assert guest.host.frames.recount() == guest.host.free_bytes
