"""The twin against cases worked out by hand: a tour of two-dimensional translation."""

from __future__ import annotations

from itertools import product

import pytest
from spaces import (
    GUEST_DATA,
    HOST_TABLES,
    KIB4,
    MIB2,
    VA,
    count,
    native_space,
    nested_space,
    touch,
)

from simvm.hardware.geometry import DataCache, MmuGeometry, NestedTlb, TlbArray, WalkCachePart
from simvm.reference import (
    GUEST_FAULT,
    OK,
    SLAT_FAULT,
    AddressSpace,
    BumpAllocator,
    Mmu,
    PageTable,
)

# --- What a walk loads


@pytest.mark.parametrize(
    ("guest_order", "host_order", "levels"),
    [*product((0, 1, 2), (0, 1, 2), (4,)), (0, 0, 5), (2, 1, 5)],
)
def test_bare_nested_walk_loads_nm_plus_n_plus_m(
    guest_order: int, host_order: int, levels: int
) -> None:
    space = nested_space(guest_order, host_order, levels, levels)
    mmu = Mmu(MmuGeometry.bare())
    mmu.trace = []
    assert mmu.access(space, VA) == (OK, 0)
    n, m = levels - guest_order, levels - host_order
    assert len(mmu.trace) == n * m + n + m
    assert count(mmu, "walk_loads", "guest_loads", "host_loads") == (n * m + n + m, n, n * m + m)
    assert count(mmu, "walk_cycles", "dram_loads") == (200 * (n * m + n + m), n * m + n + m)


def test_host_leaf_under_tables_may_differ_from_that_under_data() -> None:
    """Sum over guest levels of (m_i + 1), plus m_data: 4 * (4 + 1) + 2."""
    space = nested_space(guest_order=0, host_order=2, tables_order=0)
    mmu = Mmu(MmuGeometry.bare())
    mmu.access(space, VA)
    assert count(mmu, "walk_loads", "guest_loads") == (22, 4)


def test_native_walk_loads_one_entry_a_level() -> None:
    space = native_space(5, order=1)
    mmu = Mmu(MmuGeometry.bare())
    mmu.trace = []
    mmu.access(space, 5 * MIB2)
    assert mmu.trace == [HOST_TABLES, HOST_TABLES + 0x1000, HOST_TABLES + 0x2000 + 5 * 8]
    assert count(mmu, "walk_loads", "guest_loads", "host_loads") == (3, 0, 3)


def test_every_address_of_a_small_nested_walk() -> None:
    """Guest 1 GiB over host 1 GiB: n = m = 2, so 2*2 + 2 + 2 = 8 loads.

    VA has index 0 at level 4 and 258 at level 3. The guest's root is at gPA 0 and its
    level-3 table at gPA 0x1000, both in the host leaf of gPA 0 (indices 0 and 0). The
    data's gPA is GUEST_DATA + VA = 266 GiB and some: indices 0 and 266.
    """
    space = nested_space(2, 2)
    mmu = Mmu(MmuGeometry.bare())
    mmu.trace = []
    assert mmu.access(space, VA) == (OK, 0)
    root, level3 = HOST_TABLES, HOST_TABLES + 0x1000
    assert mmu.trace == [
        root, level3,  # where is the guest's root?
        0x0000,  # its entry 0
        root, level3,  # where is the guest's level-3 table?
        0x1000 + 258 * 8,  # its entry 258: a leaf
        root, level3 + 266 * 8,  # where is the data?
    ]  # fmt: skip


@pytest.mark.parametrize(("guest_order", "host_order"), [*product((0, 1, 2), (0, 1, 2))])
def test_tlb_entry_is_the_smaller_leaf(guest_order: int, host_order: int) -> None:
    space = nested_space(guest_order, host_order)
    for order in (0, 1, 2):
        mmu = Mmu(MmuGeometry(l1_load=(TlbArray((order,), 4, 4),)))
        mmu.access(space, VA)
        mmu.access(space, VA)
        held = order == min(guest_order, host_order)
        assert count(mmu, "l1_hits", "walks") == ((1, 1) if held else (0, 2))


# --- Replacement

ONE_SET = {ways: TlbArray((0,), ways, ways, "plru") for ways in (4, 5, 6, 12)}


def test_lru_drops_the_least_recently_used() -> None:
    mmu, space = Mmu(MmuGeometry(l1_load=(TlbArray((0,), 3, 3),))), native_space(*range(9))
    assert touch(mmu, space, 0, 1, 2, 0) == [False, False, False, True]
    # 3 takes the place of 1; then 1 that of 2, the oldest of 2, 0, 3.
    assert touch(mmu, space, 3, 0, 1, 3, 0, 2) == [False, True, False, True, True, False]


def test_set_is_the_page_number_mod_sets() -> None:
    mmu, space = Mmu(MmuGeometry(l1_load=(TlbArray((0,), 3, 1),))), native_space(*range(9))
    # Three sets of one way: 0 and 3 meet, 1 and 2 are left alone.
    assert touch(mmu, space, 0, 1, 2, 3, 1, 2, 0) == [False] * 4 + [True, True, False]


def victims(ways: int, touched: tuple[int, ...], inserted: int) -> list[int]:
    """Fill a set with 0 .. ways - 1, touch some, insert new ones: who went, in order?"""
    space = native_space(*range(40))
    held, gone = list(range(ways)), []
    for turn in range(inserted):
        survivors = []
        for candidate in held:
            # A probe that hits changes the order, so each is asked in a history of its own.
            mmu = Mmu(MmuGeometry(l1_load=(ONE_SET[ways],)))
            touch(mmu, space, *range(ways), *touched, *range(20, 21 + turn))
            if touch(mmu, space, candidate) == [True]:
                survivors.append(candidate)
            elif candidate not in gone:
                gone.append(candidate)
        held = survivors
    return gone


def test_tree_plru_of_four() -> None:
    """Filled in order, every bit points left: 0 goes, then (right half, left) 2, 1, 3."""
    assert victims(4, (), 4) == [0, 2, 1, 3]
    # Touching 0 points the root right and the left pair to 1: 2 goes, 1, then 3.
    assert victims(4, (0,), 3) == [2, 1, 3]


def test_tree_plru_of_six_passes_over_the_pair_that_does_not_exist() -> None:
    """The left half holds the pairs (0, 1) and (2, 3), the right half (4, 5) and nothing.

    Each victim turns the root, so that left and right take turns: 0 of the left; on the
    right the bit points to the missing pair, and 4 goes; left, now its other pair: 2;
    right: 5; left: 1.
    """
    assert victims(6, (), 5) == [0, 4, 2, 5, 1]


def test_tree_plru_of_five_has_the_last_way_alone_on_the_right() -> None:
    assert victims(5, (), 3) == [0, 4, 2]
    assert victims(5, (0,), 1) == [4]
    # 4, touched last, points the root left; there 1 pointed to the other pair: 2.
    assert victims(5, (1, 4), 1) == [2]


def test_tree_plru_of_twelve() -> None:
    """Eight on the left of the root, four on the right, whose second half is missing."""
    assert victims(12, (), 4) == [0, 8, 4, 10]
    assert victims(12, (0,), 2) == [8, 4]


@pytest.mark.parametrize("policy", ["lru", "plru"])
def test_insertion_takes_the_lowest_free_place(policy: str) -> None:
    """1 and 2 leave; 5 takes the place of 1, and 6 that of 2. Then LRU has 0 as its
    oldest, and the tree, touched at way 2 last, points left and there away from way 1:
    0 goes for 7. (Had 5 and 6 changed places, the tree would give up 3.) Next is 3."""
    space = native_space(*range(9))
    mmu = Mmu(MmuGeometry(l1_load=(TlbArray((0,), 4, 4, policy),)))
    touch(mmu, space, 0, 1, 2, 3)
    mmu.flush_range(1, 1 * KIB4, 2 * KIB4)
    assert touch(mmu, space, 5, 6, 7, 3) == [False, False, False, True]
    assert touch(mmu, space, 5, 6, 7) == [True] * 3


# --- TLB arrays


def test_two_arrays_of_one_order_act_as_one_of_twice_the_sets() -> None:
    """Two arrays of two sets of one way: page 0 and 2 share a set, not an array."""
    pair = (TlbArray((0, 1), 2, 1), TlbArray((0, 1), 2, 1))
    space = native_space(*range(9))
    mmu = Mmu(MmuGeometry(l1_load=pair))
    assert touch(mmu, space, 0, 1, 2, 3) == [False] * 4
    assert touch(mmu, space, 0, 1, 2, 3) == [True] * 4
    assert touch(mmu, space, 4, 2, 0) == [False, True, False]
    single = Mmu(MmuGeometry(l1_load=pair[:1]))
    assert touch(single, space, 0, 2, 0) == [False] * 3


def test_orders_of_a_shared_array_are_different_keys() -> None:
    host = PageTable(4, BumpAllocator(HOST_TABLES))
    host.map(5 * KIB4, 0, 0)
    host.map(5 * MIB2, 0, 1)
    mmu, space = Mmu(MmuGeometry(l1_load=(TlbArray((0, 1), 4, 4),))), AddressSpace(1, host)
    assert touch(mmu, space, 5) == [False]
    assert touch(mmu, space, 5, order=1) == [False]
    assert touch(mmu, space, 5) == [True]


def test_three_arrays_of_one_order_are_refused() -> None:
    with pytest.raises(ValueError, match="order 0 must be held"):
        Mmu(MmuGeometry(l1_load=(TlbArray((0,), 4, 4),) * 3))


def test_second_level_hit_fills_the_first_and_costs_the_penalty() -> None:
    geometry = MmuGeometry(
        l1_load=(TlbArray((0,), 1, 1),),
        l1_store=(TlbArray((0,), 1, 1),),
        l2=(TlbArray((0,), 8, 8),),
        l2_penalty=7,
    )
    mmu, space = Mmu(geometry), native_space(0, 1)
    touch(mmu, space, 0, 1)  # both missed: two penalties, two walks
    assert touch(mmu, space, 0, 0) == [False, True]
    assert count(mmu, "l1_hits", "l2_hits", "tlb_misses", "penalty_cycles") == (1, 1, 2, 21)
    mmu.access(space, 0, write=True)  # the array for stores has not seen it
    assert count(mmu, "l1_hits", "l2_hits", "penalty_cycles") == (1, 2, 28)


def test_penalty_needs_a_second_level() -> None:
    mmu = Mmu(MmuGeometry(l2=(TlbArray((0,), 0, 1),), l2_penalty=7))
    touch(mmu, native_space(0), 0)
    assert count(mmu, "tlb_misses", "penalty_cycles") == (1, 0)


def test_address_spaces_do_not_answer_for_each_other() -> None:
    mmu = Mmu(MmuGeometry(l1_load=(TlbArray((0,), 4, 4),)))
    assert touch(mmu, native_space(0, asid=1), 0, 0) == [False, True]
    assert touch(mmu, native_space(0, asid=2), 0, 0) == [False, True]


# --- Accessed and dirty


def bits(table: PageTable, address: int) -> tuple[bool, bool]:
    leaf = table.lookup(address)
    assert leaf is not None
    return leaf.accessed, leaf.dirty


def test_walk_sets_bits_and_tables_of_the_guest_count_as_written() -> None:
    space = nested_space()
    assert space.guest is not None
    mmu = Mmu(MmuGeometry.bare())
    mmu.access(space, VA)
    assert bits(space.guest, VA) == (True, False)
    assert bits(space.host, GUEST_DATA + VA) == (True, False)
    assert [bits(space.host, page * KIB4) for page in range(4)] == [(True, True)] * 4
    mmu.access(space, VA, write=True)
    assert bits(space.guest, VA) == bits(space.host, GUEST_DATA + VA) == (True, True)
    assert count(mmu, "dirty_updates") == (0,)
    mmu.access(space, VA)  # a walk for a load leaves D as it is
    assert bits(space.guest, VA) == bits(space.host, GUEST_DATA + VA) == (True, True)


def test_first_store_through_a_clean_entry_sets_dirty_once() -> None:
    space = nested_space()
    assert space.guest is not None
    mmu = Mmu(MmuGeometry(l1_load=(TlbArray((0,), 4, 4),)))
    mmu.access(space, VA)
    assert space.guest.clear_accessed(VA) is True
    assert space.guest.clear_accessed(VA) is False
    mmu.access(space, VA, write=True)
    mmu.access(space, VA, write=True)
    assert count(mmu, "l1_hits", "dirty_updates") == (2, 1)
    assert bits(space.guest, VA) == (False, True)  # A is set by walks alone
    assert bits(space.host, GUEST_DATA + VA) == (True, True)


def test_each_entry_has_a_dirty_flag_of_its_own() -> None:
    """A store that hits L2 marks L2 and its copy; one that hits L1 marks that alone."""
    geometry = MmuGeometry(l1_load=(TlbArray((0,), 1, 1),), l2=(TlbArray((0,), 4, 4),))
    space = native_space(0, 1)
    mmu = Mmu(geometry)
    touch(mmu, space, 0)
    mmu.access(space, 0, write=True)  # marks the entry in L1
    touch(mmu, space, 1, 0)  # a copy of that in L2, still clean, takes its place
    mmu.access(space, 0, write=True)  # marks the copy
    touch(mmu, space, 1)
    mmu.access(space, 0, write=True)  # marks that in L2, and a copy
    assert count(mmu, "dirty_updates", "l1_hits", "l2_hits") == (3, 2, 3)
    touch(mmu, space, 1)
    mmu.access(space, 0, write=True)  # finds it marked
    mmu.access(space, 0, write=True)  # and its copy
    assert count(mmu, "dirty_updates", "l1_hits", "l2_hits") == (3, 3, 5)


def test_entry_is_clean_until_both_leaves_are_dirty() -> None:
    space = nested_space()
    assert space.guest is not None
    mmu = Mmu(MmuGeometry(l1_load=(TlbArray((0,), 4, 4),)))
    mmu.access(space, VA, write=True)
    target, order = space.guest.unmap(VA)
    space.guest.map(VA, target, order)  # its D is clear now, the SLAT's is set
    mmu.flush_all()
    mmu.access(space, VA)
    mmu.access(space, VA, write=True)
    assert count(mmu, "dirty_updates") == (1,)
    assert bits(space.guest, VA) == (True, True)


@pytest.mark.parametrize("gone", ["guest", "host"])
def test_store_through_a_stale_entry_marks_no_leaf(gone: str) -> None:
    space = nested_space()
    assert space.guest is not None
    mmu = Mmu(MmuGeometry(l1_load=(TlbArray((0,), 4, 4),)))
    mmu.access(space, VA)
    (space.guest if gone == "guest" else space.host).unmap(
        VA if gone == "guest" else GUEST_DATA + VA
    )
    assert mmu.access(space, VA, write=True) == (OK, 0)
    assert count(mmu, "dirty_updates", "accesses") == (1, 2)
    if gone == "guest":
        assert bits(space.host, GUEST_DATA + VA) == (True, False)
    else:
        assert bits(space.guest, VA) == (True, False)


# --- Faults


def test_slat_fault_on_a_guest_table_in_mid_walk() -> None:
    """The page of the guest's level-2 table is not backed: two nested walks of four and
    two guest loads went well, and the third nested walk ends at its fourth load."""
    space = nested_space()
    assert space.guest is not None
    backing = space.host.unmap(2 * KIB4)[0]
    mmu = Mmu(MmuGeometry(l2=(TlbArray((0,), 4, 4),), l2_penalty=7))
    assert mmu.access(space, VA) == (SLAT_FAULT, 2 * KIB4)
    assert count(mmu, "faulted_loads", "faulted_cycles") == (14, 14 * 200)
    assert count(mmu, "accesses", "walks", "walk_loads", "walk_cycles") == (0, 0, 0, 0)
    assert count(mmu, "tlb_misses", "penalty_cycles", "dram_loads") == (1, 7, 14)
    assert bits(space.host, KIB4) == (True, True)  # what the walk changed stays changed
    assert bits(space.guest, VA) == (False, False)
    space.host.map(2 * KIB4, backing, 0)
    assert mmu.access(space, VA) == (OK, 0)
    assert count(mmu, "accesses", "walks", "tlb_misses", "walk_loads") == (1, 1, 2, 24)


def test_guest_fault_names_the_page_of_the_va() -> None:
    space = nested_space()
    mmu = Mmu(MmuGeometry.bare())
    assert mmu.access(space, VA + KIB4 + 5) == (GUEST_FAULT, VA + KIB4)
    assert count(mmu, "faulted_loads", "data_lines") == (20, 0)


def test_slat_fault_on_the_data_sets_no_bits() -> None:
    space = nested_space()
    assert space.guest is not None
    space.host.unmap(GUEST_DATA + VA)
    assert Mmu(MmuGeometry.bare()).access(space, VA + 5, True) == (SLAT_FAULT, GUEST_DATA + VA)
    assert bits(space.guest, VA) == (False, False)


def test_native_fault_is_the_hosts() -> None:
    mmu = Mmu(MmuGeometry.bare())
    assert mmu.access(native_space(0), 7 * KIB4 + 9) == (SLAT_FAULT, 7 * KIB4)


# --- Walk caches and the nested TLB

PARTS = tuple(WalkCachePart(level, 4, 4) for level in (2, 3, 4))


def test_combined_walk_cache_skips_everything_above_the_last_table() -> None:
    """The level-2 entry's part knows the hPA of the level-1 table: one guest load is
    left, and the nested walk of the data (four loads)."""
    space = nested_space()
    mmu = Mmu(MmuGeometry(style="intel", guest_walk_cache=PARTS, walk_cache_latency=3))
    mmu.access(space, VA)
    assert count(mmu, "walk_loads", "guest_walk_cache_hits") == (24, 0)
    mmu.access(space, VA)
    assert count(mmu, "walk_loads", "guest_loads") == (24 + 5, 4 + 1)
    assert count(mmu, "guest_walk_cache_hits", "walk_cycles") == (1, 29 * 200 + 3)


def test_gpa_walk_cache_leaves_the_last_table_to_be_translated() -> None:
    """Four host loads more than the combined entry needs, for the level-1 table."""
    space = nested_space()
    mmu = Mmu(MmuGeometry(style="amd", guest_walk_cache=PARTS, walk_cache_latency=3))
    mmu.access(space, VA)
    mmu.access(space, VA)
    assert count(mmu, "walk_loads", "guest_loads") == (24 + 9, 4 + 1)
    assert count(mmu, "guest_walk_cache_hits", "walk_cycles") == (1, 33 * 200 + 3)


@pytest.mark.parametrize(("style", "known_level"), [("intel", 4), ("amd", 3)])
def test_when_a_guest_walk_cache_entry_is_made(style: str, known_level: int) -> None:
    """The level-2 table's page is missing. The level-3 entry that points to it has been
    read, but not translated: only the style that keeps gPA knows it on the next try."""
    space = nested_space()
    backing = space.host.unmap(2 * KIB4)[0]
    mmu = Mmu(MmuGeometry(style=style, guest_walk_cache=PARTS))
    mmu.trace = []
    assert mmu.access(space, VA) == (SLAT_FAULT, 2 * KIB4)
    space.host.map(2 * KIB4, backing, 0)
    mmu.access(space, VA)
    assert count(mmu, "guest_walk_cache_hits") == (1,)
    # Read the tables from level known_level - 1 down: a combined entry spares one nested walk.
    guest_loads = known_level - 1
    nested_walks = guest_loads + (1 if style == "amd" else 0)
    assert count(mmu, "guest_loads", "host_loads") == (guest_loads, 4 * nested_walks)


def test_native_walks_use_the_guest_walk_cache() -> None:
    mmu, space = Mmu(MmuGeometry(guest_walk_cache=PARTS[1:])), native_space(0, 1)
    touch(mmu, space, 0, 1)
    assert count(mmu, "walk_loads", "guest_walk_cache_hits") == (4 + 2, 1)


def test_part_above_the_root_is_never_probed() -> None:
    mmu = Mmu(MmuGeometry(guest_walk_cache=(WalkCachePart(5, 4, 4),)))
    touch(mmu, native_space(0), 0, 0)
    assert count(mmu, "guest_walk_cache_hits", "walk_loads") == (0, 8)


def test_host_walk_cache_serves_every_dimension() -> None:
    """The first nested walk of the tables loads four entries, the next three one each;
    the data lies elsewhere, below another level-3 entry: it starts from level 3."""
    mmu = Mmu(MmuGeometry(host_walk_cache=PARTS))
    mmu.access(nested_space(), VA)
    assert count(mmu, "guest_loads", "host_loads") == (4, 4 + 1 + 1 + 1 + 3)
    assert count(mmu, "host_walk_cache_hits", "walk_cycles") == (4, 14 * 200 + 4)


def test_nested_tlb_answers_for_tables_alone() -> None:
    """The tables' host leaf is one of 2 MiB: found once (three loads), then known. The
    data's page is walked each time and never entered."""
    space = nested_space(host_order=1)
    mmu = Mmu(MmuGeometry(nested_tlb=NestedTlb(4, 4)))
    mmu.access(space, VA)
    assert count(mmu, "nested_tlb_hits", "host_loads", "guest_loads") == (3, 3 + 3, 4)
    mmu.access(space, VA)
    assert count(mmu, "nested_tlb_hits", "host_loads", "guest_loads") == (7, 9, 8)
    assert count(mmu, "walk_cycles") == (17 * 200 + 7,)


# --- Data caches


def test_one_line_too_many_under_lru_misses_them_all() -> None:
    """A native walk to page 0 and its data are five lines. L2 has one place for them (all
    fall into its even set), the LLC four: each line goes before its turn comes again."""
    geometry = MmuGeometry(
        cache_l2=DataCache(128, 1, 10), cache_llc=DataCache(256, 4, 40), dram_latency=200
    )
    mmu, space = Mmu(geometry), native_space(0)
    touch(mmu, space, 0, 0)
    assert count(mmu, "l2_loads", "llc_loads", "dram_loads", "data_lines") == (0, 0, 8, 2)


def test_data_line_evicts_a_line_of_tables() -> None:
    """Where five lines fit, four of tables stay beside one of data: another line of data
    takes the place of the first. Where four fit, each data line drives out a table's."""
    space = native_space(0)
    mmu = Mmu(MmuGeometry(cache_l2=DataCache(5 * 64, 5, 10)))
    touch(mmu, space, 0, 0)
    assert count(mmu, "l2_loads", "dram_loads", "walk_cycles") == (4, 4, 4 * 200 + 4 * 10)
    mmu.access(space, 64)
    mmu.access(space, 0)
    assert count(mmu, "l2_loads", "dram_loads") == (12, 4)
    small = Mmu(MmuGeometry(cache_l2=DataCache(4 * 64, 4, 10)))
    touch(small, space, 0, 0)
    assert count(small, "l2_loads", "dram_loads", "data_lines") == (0, 8, 2)


def test_line_that_leaves_the_llc_stays_in_l2() -> None:
    space = native_space(0)
    mmu = Mmu(MmuGeometry(cache_l2=DataCache(512, 8, 10), cache_llc=DataCache(64, 1, 40)))
    touch(mmu, space, 0, 0)
    assert count(mmu, "l2_loads", "llc_loads", "dram_loads") == (4, 0, 4)


def test_llc_hit_enters_l2() -> None:
    space = native_space(0)
    mmu = Mmu(MmuGeometry(cache_l2=DataCache(64, 1, 10), cache_llc=DataCache(512, 8, 40)))
    touch(mmu, space, 0, 0)
    assert count(mmu, "l2_loads", "llc_loads", "dram_loads") == (0, 4, 4)
    assert count(mmu, "walk_cycles") == (4 * 200 + 4 * 40,)


# --- Invalidation

CACHED = MmuGeometry(
    style="amd",
    l1_load=(TlbArray((0, 1, 2), 8, 8),),
    guest_walk_cache=PARTS,
    host_walk_cache=PARTS,
    nested_tlb=NestedTlb(8, 8),
    cache_l2=DataCache(8192, 16, 10),
)


@pytest.mark.parametrize("flush", [Mmu.flush_all, Mmu.flush_guest])
def test_flushing_all_spares_only_the_data_caches(flush: object) -> None:
    space, mmu = nested_space(), Mmu(CACHED)
    mmu.access(space, VA)
    first = mmu.counters()
    assert callable(flush)
    flush(mmu)
    mmu.access(space, VA)
    both = mmu.counters()
    for name in ("tlb_misses", "walk_loads", "host_walk_cache_hits", "nested_tlb_hits"):
        assert both[name] == 2 * first[name]
    assert both["guest_walk_cache_hits"] == both["l1_hits"] == 0
    assert both["dram_loads"] == first["dram_loads"]


def test_flushing_an_address_space_leaves_what_is_guest_physical() -> None:
    space, mmu = nested_space(), Mmu(CACHED)
    other = AddressSpace(2, space.host, space.guest)
    mmu.access(space, VA)
    mmu.access(other, VA)
    before = mmu.counters()
    mmu.flush_asid(1)
    mmu.access(other, VA)
    assert count(mmu, "l1_hits") == (1,)
    mmu.access(space, VA)
    after = mmu.counters()
    assert after["tlb_misses"] == before["tlb_misses"] + 1
    assert after["guest_walk_cache_hits"] == 0
    assert after["nested_tlb_hits"] == before["nested_tlb_hits"] + 4


def test_flushing_a_range_drops_what_overlaps_and_all_of_the_walk_cache() -> None:
    vas = (VA, VA + KIB4, VA + 2 * KIB4)
    space, mmu = nested_space(vas=vas), Mmu(CACHED)
    for va in vas:
        mmu.access(space, va)
    assert count(mmu, "guest_walk_cache_hits", "tlb_misses") == (2, 3)
    mmu.flush_range(1, VA + KIB4 - 1, 2)  # the last byte of the first, the first of the next
    for va in reversed(vas):
        mmu.access(space, va)
    assert count(mmu, "l1_hits", "tlb_misses", "guest_walk_cache_hits") == (1, 5, 3)


def test_flushed_byte_drops_the_large_entry_around_it() -> None:
    mmu, space = Mmu(CACHED), native_space(0, 1, order=1)
    touch(mmu, space, 0, 1, order=1)
    mmu.flush_range(1, 1 << 20, 1)
    assert touch(mmu, space, 0, 1, order=1) == [False, True]
