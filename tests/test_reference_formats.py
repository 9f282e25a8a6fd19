"""The twin with tables of every format: what a walk loads, and how large its TLB entry is."""

from __future__ import annotations

from itertools import product

import pytest
from spaces import (
    GIB1,
    HOST_TABLES,
    KIB4,
    KIB16,
    KIB64,
    MIB2,
    MIB32,
    MIB512,
    back_tables,
    count,
    native_space,
    page_table,
    space_of,
)

from simvm.hardware.geometry import (
    ENTRY_SHIFTS,
    MmuGeometry,
    NestedTlb,
    TableFormat,
    TlbArray,
    WalkCachePart,
)
from simvm.reference import GUEST_FAULT, OK, SLAT_FAULT, AddressSpace, BumpAllocator, Mmu, PageTable

FORMS = {
    "4K-2": TableFormat(2),
    "4K-3": TableFormat(3),
    "4K-4": TableFormat(4),
    "4K-5": TableFormat(5),
    "Sv39x4": TableFormat(3, root_bits=11),
    "Sv48x4": TableFormat(4, root_bits=11),
    "4K-3-two": TableFormat(3, root_bits=10),  # Arm stage 2, 40 bits: two tables in a row
    "4K-2-sixteen": TableFormat(2, root_bits=13),
    "16K-2": TableFormat(2, 14),
    "16K-3": TableFormat(3, 14),
    "16K-4": TableFormat(4, 14, root_bits=1),  # Arm, 48 bits
    "16K-3-two": TableFormat(3, 14, root_bits=12),
    "64K-2": TableFormat(2, 16),
    "64K-3": TableFormat(3, 16, root_bits=6),  # Arm, 48 bits
    "64K-2-sixteen": TableFormat(2, 16, root_bits=17),
}
PAIRS = list(product(FORMS, FORMS))


def orders(form: TableFormat) -> tuple[int, ...]:
    return page_table(form, 0).orders


# --- What a walk loads


@pytest.mark.parametrize(("guest", "host"), PAIRS)
def test_bare_walk_loads_the_sum_over_guest_levels(guest: str, host: str) -> None:
    """Sum over guest levels of (m_i + 1), plus m_data, for every leaf of every format."""
    guest_form, host_form = FORMS[guest], FORMS[host]
    reach = page_table(host_form, 0).top.reach
    tried = 0
    for guest_order, data_order, tables_order in product(
        orders(guest_form), orders(host_form), orders(host_form)
    ):
        if page_table(guest_form, 0).shift(guest_order + 1) >= reach.bit_length() - 1:
            continue  # a leaf larger than half of what the SLAT reaches
        tried += 1
        space, va = space_of(guest_form, host_form, guest_order, data_order, tables_order)
        mmu = Mmu(MmuGeometry.bare())
        mmu.trace = []
        assert mmu.access(space, va) == (OK, 0)
        n = guest_form.levels - guest_order
        m_table, m_data = host_form.levels - tables_order, host_form.levels - data_order
        loads = sum(m_table + 1 for _ in range(n)) + m_data
        assert len(mmu.trace) == loads
        assert count(mmu, "walk_loads", "guest_loads") == (loads, n)
        assert count(mmu, "host_loads", "walk_cycles") == (n * m_table + m_data, 200 * loads)
    assert tried


def test_levels_of_host_leaves_under_tables_may_differ() -> None:
    """The guest's root lies in a host leaf of 2 MiB, its other tables in such of 4 KiB:
    (3 + 1) + 2 * (4 + 1) + 4 loads for a guest of three levels."""
    host, guest = page_table(FORMS["4K-4"], HOST_TABLES), PageTable(3, BumpAllocator(2 * MIB2))
    space = AddressSpace(1, host, guest)
    for _ in range(511):  # the rest of the 2 MiB that the root is in
        guest._allocator.allocate_4k()
    guest.map(0, GIB1, 0)
    host.map(2 * MIB2, 2 * MIB2, 1)
    for gpa in (3 * MIB2, 3 * MIB2 + KIB4, GIB1):
        host.map(gpa, gpa, 0)
    mmu = Mmu(MmuGeometry.bare())
    assert mmu.access(space, 0) == (OK, 0)
    assert count(mmu, "walk_loads") == (4 + 2 * 5 + 4,)


def test_concatenated_root_is_indexed_past_its_first_table() -> None:
    """Sv39x4: bits 40 to 30 of a gPA select one of 2048 entries of a root of 16 KiB."""
    table = page_table(FORMS["Sv39x4"], HOST_TABLES)
    assert table.table_pages == 4
    address = 1500 << 30
    table.map(address, 7 * GIB1, 2)
    mmu = Mmu(MmuGeometry.bare())
    mmu.trace = []
    assert mmu.translate(AddressSpace(1, table), address + 5) == (OK, 7 * GIB1 + 5)
    assert mmu.trace == [HOST_TABLES + 8 * 1500]
    with pytest.raises(ValueError, match="out of reach"):
        table.map(1 << 41, 0, 2)


def test_root_is_aligned_to_its_size() -> None:
    memory = BumpAllocator(KIB4)
    assert PageTable(3, memory, root_bits=11).root == KIB16
    assert PageTable(2, memory, granule_shift=16, root_bits=17).root == 16 * KIB64
    assert PageTable(2, memory, granule_shift=16, root_bits=2).table_pages == 16


def test_narrow_root_reaches_less() -> None:
    table = page_table(FORMS["16K-4"], 0)
    table.map((1 << 48) - KIB16, 0, 0)
    with pytest.raises(ValueError, match="out of reach"):
        table.map(1 << 48, 0, 0)
    assert table.lookup(1 << 48) is None
    assert table.table_pages == 4 * 4


def test_tables_larger_than_4k_come_and_go_whole() -> None:
    class Log(BumpAllocator):
        def __init__(self) -> None:
            super().__init__()
            self.freed: list[tuple[int, int]] = []

        def free_run(self, address: int, pages: int) -> None:
            self.freed.append((address, pages))

    log = Log()
    table = PageTable(3, log, granule_shift=16)
    table.map(0, 0, 0)
    table.unmap(0)
    table.prune()
    assert log.freed == [(2 * KIB64, 16), (KIB64, 16)]
    assert (table.root, table.table_pages) == (0, 16)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"levels": 1}, "2 to 5"),
        ({"levels": 6}, "2 to 5"),
        ({"granule_shift": 13}, "12, 14 or 16"),
        ({"root_bits": 14}, "0 to 13"),
        ({"root_bits": -1}, "0 to 13"),
        ({"granule_shift": 14, "contiguous": True}, "contiguous"),
        ({"levels": 5, "root_bits": 10}, "reach over"),
        ({"granule_shift": 16}, "reach over"),
    ],
)
def test_formats_that_there_are_not(arguments: dict[str, int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        PageTable(**{"levels": 4, "allocator": BumpAllocator(), **arguments})  # type: ignore[arg-type]


def test_leaves_that_there_are_not() -> None:
    for form, order in ((TableFormat(3, 14), 2), (TableFormat(2, 16), 2), (TableFormat(2), 2)):
        with pytest.raises(ValueError, match="does not suit"):
            page_table(form, 0).map(0, 0, order)


def test_faults_are_of_4k_also_under_larger_granules() -> None:
    """The guest's root of 64 KiB lies in host pages of 4 KiB. The one that is read is missing."""
    host, guest = page_table(FORMS["4K-4"], HOST_TABLES), page_table(FORMS["64K-2"], 0)
    space = AddressSpace(1, host, guest)
    va = 1234 * MIB512 + 9 * KIB64  # entry 1234 of the root: in its third page
    mmu = Mmu(MmuGeometry.bare())
    assert mmu.access(space, va) == (SLAT_FAULT, 2 * KIB4)
    host.map(2 * KIB4, 0, 0)
    assert mmu.access(space, va + 3 * KIB4 + 5) == (GUEST_FAULT, va + 3 * KIB4)


# --- How large a TLB entry is


def held(space: AddressSpace, va: int) -> int:
    """The size of the TLB entry that an access leaves."""
    sizes = []
    for order, shift in enumerate(ENTRY_SHIFTS):
        mmu = Mmu(MmuGeometry(l1_load=(TlbArray((order,), 4, 4),)))
        mmu.access(space, va)
        mmu.access(space, va)
        sizes += [1 << shift] * mmu.counters()["l1_hits"]
    assert len(sizes) == 1
    return sizes[0]


@pytest.mark.parametrize(
    ("form", "sizes"),
    [
        (TableFormat(4), (KIB4, MIB2, GIB1)),
        (TableFormat(3, 14), (KIB16, MIB32)),
        (TableFormat(3, 16), (KIB64, MIB512)),
    ],
)
def test_entry_of_a_native_leaf_has_its_size(form: TableFormat, sizes: tuple[int, ...]) -> None:
    for order, size in enumerate(sizes):
        assert held(native_space(3, order=order, form=form), 3 * size + 5) == size


@pytest.mark.parametrize(
    ("guest", "guest_order", "host", "host_order", "size"),
    [
        ("4K-4", 1, "64K-3", 0, KIB64),
        ("64K-2", 0, "4K-4", 0, KIB4),
        ("64K-2", 1, "4K-4", 1, MIB2),
        ("16K-3", 1, "64K-3", 1, MIB32),
        ("64K-3", 1, "4K-4", 2, MIB512),
        ("4K-4", 2, "16K-3", 0, KIB16),
    ],
)
def test_entry_over_mixed_granules_is_the_smaller_leaf(
    guest: str, guest_order: int, host: str, host_order: int, size: int
) -> None:
    space, va = space_of(FORMS[guest], FORMS[host], guest_order, host_order)
    assert held(space, va) == size


def test_orders_are_probed_by_number_and_not_by_size() -> None:
    """A page of 4 KiB and the one of 64 KiB around it are both held, of two tables with one tag:
    that of 4 KiB, order 0, answers. Before it was there, that of 64 KiB, order 3, did."""
    small, large = native_space(0), native_space(0, form=TableFormat(3, 16))
    small.host.unmap(0)
    small.host.map(0, GIB1, 0)
    mmu = Mmu(MmuGeometry(l1_load=(TlbArray((0, 3), 4, 4),)))
    mmu.access(large, 0)
    assert mmu.translate(small, 0) == (OK, 0)
    mmu.flush_all()
    mmu.access(small, 0)
    mmu.access(large, KIB4)
    assert mmu.translate(large, 0) == (OK, GIB1)
    assert mmu.translate(large, 2 * KIB4) == (OK, 2 * KIB4)


# --- Contiguous pages

CONTIGUOUS = TableFormat(contiguous=True)
GROUPING = MmuGeometry(l1_load=(TlbArray((0, 3), 8, 8),))


def sixteen(form: TableFormat = CONTIGUOUS, first: int = 16, target: int = 32) -> AddressSpace:
    """Pages `first` and on, mapped to the frames from `target` on."""
    host = page_table(form, HOST_TABLES)
    for page in range(16):
        host.map((first + page) * KIB4, (target + page) * KIB4, 0)
    return AddressSpace(1, host)


def entries(space: AddressSpace, geometry: MmuGeometry = GROUPING) -> int:
    """How many walks the pages 16 to 31 need."""
    mmu = Mmu(geometry)
    for page in range(16, 32):
        mmu.translate(space, page * KIB4)
    return mmu.counters()["walks"]


def test_group_is_one_entry() -> None:
    space = sixteen()
    assert entries(space) == 1
    mmu = Mmu(GROUPING)
    mmu.access(space, 21 * KIB4)
    assert mmu.translate(space, 30 * KIB4 + 3) == (OK, 46 * KIB4 + 3)
    assert count(mmu, "l1_hits") == (1,)


def test_what_is_no_group() -> None:
    assert entries(sixteen(TableFormat())) == 16  # the format is not contiguous
    assert entries(sixteen(target=33)) == 16  # the frames are not aligned
    assert entries(sixteen(first=17, target=33)) == 15  # nor these pages; 16 is not mapped
    hole = sixteen()
    hole.host.unmap(31 * KIB4)
    assert entries(hole) == 15
    apart = sixteen()
    apart.host.unmap(31 * KIB4)
    apart.host.map(31 * KIB4, 99 * KIB4, 0)
    assert entries(apart) == 16


@pytest.mark.parametrize(
    "arrays", [(TlbArray((0,), 32, 32),), (TlbArray((0,), 32, 32), TlbArray((3,), 0, 1))]
)
def test_group_needs_an_array_that_holds_its_size(arrays: tuple[TlbArray, ...]) -> None:
    """An array of no entries is none. One of any TLB will do: here it is the L2's."""
    assert entries(sixteen(), MmuGeometry(l1_load=arrays)) == 16
    with_l2 = MmuGeometry(l1_load=arrays, l2=(TlbArray((3,), 4, 4),))
    assert entries(sixteen(), with_l2) == 1


def test_group_over_smaller_or_larger_host_leaves() -> None:
    guest = page_table(CONTIGUOUS, 0)
    for page in range(16):
        guest.map(page * KIB4, GIB1 + page * KIB4, 0)
    sizes = []
    for host_order in (0, 1):
        space = AddressSpace(1, page_table(TableFormat(), HOST_TABLES), guest)
        back_tables(space, 0)
        for gpa in range(GIB1, GIB1 + KIB64, 1 << space.host.shift(host_order + 1)):
            space.host.map(gpa, gpa, host_order)
        mmu = Mmu(GROUPING)
        for page in range(16):
            mmu.access(space, page * KIB4)
        sizes.append(mmu.counters()["walks"])
    assert sizes == [16, 1]


def test_group_sets_bits_in_the_leaf_that_was_walked_to() -> None:
    space = sixteen()
    mmu = Mmu(GROUPING)
    mmu.access(space, 18 * KIB4, True)
    mmu.access(space, 20 * KIB4, True)  # finds the entry dirty: no D is set
    walked_to, other = (space.host.leaf(page * KIB4) for page in (18, 20))
    assert (walked_to.accessed, walked_to.dirty) == (True, True)
    assert (other.accessed, other.dirty) == (False, False)
    assert count(mmu, "dirty_updates") == (0,)


def test_store_through_a_clean_group_marks_the_leaf_of_its_own_page() -> None:
    space = sixteen()
    mmu = Mmu(GROUPING)
    mmu.access(space, 18 * KIB4)
    mmu.access(space, 20 * KIB4, True)
    dirty = [page for page in range(16, 32) if space.host.leaf(page * KIB4).dirty]
    assert dirty == [20]


def test_clearing_accessed_is_of_the_whole_group() -> None:
    space = sixteen()
    Mmu(GROUPING).access(space, 18 * KIB4)
    assert space.host.clear_accessed(29 * KIB4)
    assert not space.host.leaf(18 * KIB4).accessed
    assert not space.host.clear_accessed(18 * KIB4)
    Mmu(GROUPING).access(space, 18 * KIB4)
    space.host.unmap(31 * KIB4)
    assert not space.host.clear_accessed(29 * KIB4)  # a group no longer
    assert space.host.clear_accessed(18 * KIB4)


# --- Guest tables that are larger than the host's leaves


def test_combined_entry_needs_one_host_leaf_under_the_table() -> None:
    """A guest of 64 KiB granules, two levels. Over host pages of 4 KiB its level-1 table has no
    one hPA: each walk translates the entry it reads. Over 2 MiB the combined entry has it."""
    cache = (WalkCachePart(2, 4, 4),)
    for tables_order, m, spared in ((0, 4, 0), (1, 3, 1)):
        space, va = space_of(FORMS["64K-2"], FORMS["4K-4"], 0, 0, tables_order)
        mmu = Mmu(MmuGeometry(style="intel", guest_walk_cache=cache))
        mmu.access(space, va)
        assert count(mmu, "walk_loads") == (2 * (m + 1) + 4,)
        mmu.access(space, va)
        assert count(mmu, "guest_walk_cache_hits") == (1,)
        assert count(mmu, "walk_loads") == (2 * (m + 1) + 4 + (1 - spared) * m + 1 + 4,)


@pytest.mark.parametrize(("tables_order", "hits"), [(0, 1), (1, 2)])
def test_nested_tlb_answers_for_the_host_page_of_the_entry(tables_order: int, hits: int) -> None:
    """The 8192 entries of the level-1 table fill sixteen host pages. Entries 0 and 1 share one of
    4 KiB; entry 512 lies in the next. The root's entry is found again each time."""
    space, va = space_of(FORMS["64K-2"], FORMS["4K-4"], 0, 0, tables_order)
    assert space.guest is not None
    mmu = Mmu(MmuGeometry(nested_tlb=NestedTlb(8, 8)))
    for page in (1, 512):
        space.guest.map(va + page * KIB64, page * KIB64, 0)
        if space.host.lookup(page * KIB64) is None:
            space.host.map(page * KIB64, page * KIB64, 0)
    mmu.access(space, va)
    before = count(mmu, "nested_tlb_hits")[0]
    mmu.access(space, va + KIB64)
    assert count(mmu, "nested_tlb_hits") == (before + 2,)
    mmu.access(space, va + 512 * KIB64)
    assert count(mmu, "nested_tlb_hits") == (before + 2 + hits,)
