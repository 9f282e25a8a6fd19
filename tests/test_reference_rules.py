"""The twin's replacement, tags, targets, smashing, walkers and flushes, by cases made by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
from spaces import (
    GIB1,
    GUEST_DATA,
    HOST_TABLES,
    KIB4,
    MIB2,
    VA,
    back_tables,
    count,
    native_space,
    nested_space,
    page_table,
    touch,
)

from simvm.hardware.geometry import (
    MmuGeometry,
    NestedTlb,
    TableFormat,
    TlbArray,
    WalkCachePart,
)
from simvm.reference import OK, SLAT_FAULT, AddressSpace, BumpAllocator, Mmu, PageTable

PARTS = tuple(WalkCachePart(level, 4, 4) for level in (2, 3, 4))

# --- Replacement


def test_fifo_drops_what_came_first_however_often_it_is_met() -> None:
    mmu, space = Mmu(MmuGeometry(l1_load=(TlbArray((0,), 3, 3, "fifo"),))), native_space(*range(9))
    assert touch(mmu, space, 0, 1, 2, 0, 0) == [False, False, False, True, True]
    # 3 takes the place of 0, for all that; 0 that of 1.
    assert touch(mmu, space, 3, 1, 2, 0, 2) == [False, True, True, False, True]
    assert touch(mmu, space, 1) == [False]


def random_victims(ways: int, evictions: int) -> list[int]:
    """The rule of docs/translation.md, once more."""
    state, victims = 0x9E3779B97F4A7C15, []
    for _ in range(evictions):
        state = (state * 6364136223846793005 + 1442695040888963407) & (1 << 64) - 1
        victims.append((state >> 33) * ways >> 31)
    return victims


def test_random_victims_are_those_of_the_generator() -> None:
    """Of two sets of three ways: pages of either parity meet in one, with one generator."""
    mmu = Mmu(MmuGeometry(l1_load=(TlbArray((0,), 6, 3, "random"),)))
    space = native_space(*range(60))
    touch(mmu, space, *range(6))
    places = [[0, 2, 4], [1, 3, 5]]
    for page, way in zip(range(6, 30), random_victims(3, 24), strict=True):
        touch(mmu, space, page, page)  # a hit draws no number
        places[page % 2][way] = page
    held = set(places[0] + places[1])
    assert touch(mmu, space, *sorted(held)) == [True] * 6
    assert len(set(random_victims(3, 24))) == 3


def test_flushes_leave_the_random_state() -> None:
    mmu = Mmu(MmuGeometry(l1_load=(TlbArray((0,), 4, 4, "random"),)))
    space = native_space(*range(60))
    first, second = random_victims(4, 2)
    assert first != second
    touch(mmu, space, 0, 1, 2, 3, 4)
    mmu.flush_all()
    touch(mmu, space, 10, 11, 12, 13, 14)
    hits = touch(mmu, space, *(page for page in (10, 11, 12, 13) if page != 10 + second))
    assert hits == [True] * 3


@pytest.mark.parametrize("policy", ["fifo", "random"])
def test_free_places_are_taken_before_any_victim(policy: str) -> None:
    mmu = Mmu(MmuGeometry(l1_load=(TlbArray((0,), 4, 4, policy),)))
    space = native_space(*range(9))
    touch(mmu, space, 0, 1, 2, 3)
    mmu.flush_range(1, 1 * KIB4, 2 * KIB4)
    touch(mmu, space, 5, 6)
    assert touch(mmu, space, 0, 3, 5, 6) == [True] * 4


# --- Tags

CACHED = MmuGeometry(
    style="amd",
    l1_load=(TlbArray((0, 1, 2), 16, 16),),
    l2=(TlbArray((0, 1, 2), 16, 16),),
    guest_walk_cache=tuple(WalkCachePart(level, 8, 8) for level in (2, 3, 4)),
    host_walk_cache=tuple(WalkCachePart(level, 8, 8) for level in (2, 3, 4)),
    nested_tlb=NestedTlb(16, 16),
)
HITS = ("l1_hits", "nested_tlb_hits", "host_walk_cache_hits", "guest_walk_cache_hits")


def test_guests_do_not_meet_in_any_structure() -> None:
    """Two VMs with the same asid and addresses: the second finds what it would have alone."""
    mmu, alone = Mmu(CACHED), Mmu(CACHED)
    alone.access(nested_space(vpid=7), VA)
    mmu.access(nested_space(), VA)
    before = count(mmu, *HITS)
    mmu.access(nested_space(vpid=7), VA)
    after = count(mmu, *HITS)
    assert tuple(b - a for a, b in zip(before, after, strict=True)) == count(alone, *HITS)


def test_spaces_of_one_guest_share_what_is_the_hosts() -> None:
    space = nested_space()
    other = AddressSpace(2, space.host, space.guest, space.vpid)
    mmu = Mmu(CACHED)
    mmu.access(space, VA)
    loads = mmu.counters()["walk_loads"]
    mmu.access(other, VA)
    # Every guest table is in the nested TLB, and the host's last level under the data is known.
    assert count(mmu, "l1_hits", "guest_walk_cache_hits") == (0, 0)
    assert mmu.counters()["walk_loads"] == loads + 4 + 1


@pytest.mark.parametrize("flush", ["guest", "asid", "range"])
def test_flush_is_of_one_guest(flush: str) -> None:
    spaces = [nested_space(vpid=vpid) for vpid in (0, 7)]
    mmu = Mmu(CACHED)
    for space in spaces:
        mmu.access(space, VA)
    if flush == "guest":
        mmu.flush_guest(7)
    elif flush == "asid":
        mmu.flush_asid(1, 7)
    else:
        mmu.flush_range(1, VA, 1, 7)
    mmu.access(spaces[0], VA)
    assert count(mmu, "l1_hits", "tlb_misses") == (1, 2)
    before = mmu.counters()["nested_tlb_hits"]
    mmu.access(spaces[1], VA)
    assert count(mmu, "l1_hits", "tlb_misses") == (1, 3)
    again = mmu.counters()["nested_tlb_hits"] - before
    assert again == (0 if flush == "guest" else 4)


def test_native_spaces_have_a_vpid_too() -> None:
    mmu = Mmu(CACHED)
    one, two = native_space(0), native_space(0, vpid=3)
    assert touch(mmu, one, 0) + touch(mmu, two, 0) == [False, False]
    mmu.flush_guest(3)
    assert touch(mmu, one, 0) + touch(mmu, two, 0) == [True, False]


# --- Targets


def moved(order: int = 0) -> AddressSpace:
    """Pages 0 to 3 of that order, each mapped to 16 pages further."""
    space = native_space(order=order)
    size = 1 << space.host.shift(order + 1)
    for page in range(4):
        space.host.map(page * size, (page + 16) * size, order)
    return space


def test_translation_is_that_of_walk_first_and_second_level() -> None:
    geometry = MmuGeometry(l1_load=(TlbArray((0,), 1, 1),), l2=(TlbArray((0,), 8, 8),))
    mmu, space = Mmu(geometry), moved()
    answer = OK, 17 * KIB4 + 5
    assert mmu.translate(space, KIB4 + 5) == answer
    assert mmu.translate(space, KIB4 + 5, True) == answer
    touch(mmu, space, 0)
    assert mmu.translate(space, KIB4 + 5) == answer
    assert mmu.translate(space, KIB4 + 5) == answer
    assert count(mmu, "walks", "l1_hits", "l2_hits", "dirty_updates") == (2, 2, 1, 1)


def test_translation_needs_no_tlb() -> None:
    space = nested_space(1, 0)
    mmu = Mmu(MmuGeometry.bare())
    assert mmu.translate(space, VA) == (OK, GUEST_DATA + VA)
    assert mmu.translate(space, VA + KIB4) == (SLAT_FAULT, GUEST_DATA + VA + KIB4)
    assert mmu.access(space, VA) == (OK, 0)


def test_stale_entry_answers_with_what_it_holds() -> None:
    mmu, space = Mmu(CACHED), moved()
    mmu.access(space, 0)
    space.host.unmap(0)
    space.host.map(0, 99 * KIB4, 0)
    assert mmu.translate(space, 0) == (OK, 16 * KIB4)
    mmu.flush_range(1, 0, 1)
    assert mmu.translate(space, 0) == (OK, 99 * KIB4)


# --- Smashing

SMASHING = MmuGeometry(
    l1_load=(TlbArray((0, 1, 2), 1, 1),), l2=(TlbArray((0, 1), 8, 8),), smash=True
)


def test_smashed_page_has_an_entry_for_each_part_that_is_met() -> None:
    mmu, space = Mmu(SMASHING), moved(2)
    small = 3 * GIB1
    assert mmu.translate(space, 5 * MIB2 + 7) == (OK, 16 * GIB1 + 5 * MIB2 + 7)
    assert mmu.translate(space, 6 * MIB2) == (OK, 16 * GIB1 + 6 * MIB2)  # L1 has it whole
    mmu.access(space, small)
    assert count(mmu, "walks", "l1_hits") == (2, 1)
    assert mmu.translate(space, 5 * MIB2) == (OK, 16 * GIB1 + 5 * MIB2)  # L2 has that part
    assert mmu.translate(space, 9 * MIB2 + 1) == (OK, 16 * GIB1 + 9 * MIB2 + 1)  # L1 again
    assert count(mmu, "walks", "l1_hits", "l2_hits") == (2, 2, 1)
    mmu.access(space, small)
    mmu.access(space, 6 * MIB2)  # of that part L2 has heard nothing
    assert count(mmu, "walks", "l2_hits") == (3, 2)


@pytest.mark.parametrize(
    ("smash", "orders"), [(False, (0, 1)), (True, (0,)), (True, (0, 1, 2)), (False, (0, 1, 2))]
)
def test_smashing_needs_the_flag_and_an_array_of_2m_and_none_of_1g(
    smash: bool, orders: tuple[int, ...]
) -> None:
    mmu, space = Mmu(MmuGeometry(l2=(TlbArray(orders, 8, 8),), smash=smash)), moved(2)
    mmu.access(space, 0)
    mmu.access(space, 0)
    mmu.access(space, 3 * MIB2)
    assert mmu.counters()["l2_hits"] == (2 if 2 in orders else 0)


def test_parts_of_a_smashed_page_have_dirty_flags_of_their_own() -> None:
    geometry = MmuGeometry(l2=(TlbArray((0, 1), 8, 8),), smash=True)
    mmu, space = Mmu(geometry), moved(2)
    for part in (0, 1):
        mmu.access(space, part * MIB2)
    for part in (0, 0, 1, 1):
        mmu.access(space, part * MIB2, True)
    assert count(mmu, "dirty_updates", "l2_hits") == (2, 4)


@pytest.mark.parametrize("flush", ["range", "gpa"])
def test_flushed_byte_drops_every_part_of_a_smashed_page(flush: str) -> None:
    geometry = MmuGeometry(l2=(TlbArray((0, 1), 8, 8),), smash=True)
    mmu, space = Mmu(geometry), nested_space(2, 2)
    gib = VA - VA % GIB1
    for part in (0, 1, 2):
        mmu.access(space, gib + part * MIB2)
    if flush == "range":
        mmu.flush_range(1, gib + GIB1 - 1, 1)
    else:
        mmu.flush_gpa(GUEST_DATA + gib + GIB1 - 1, 1)
    for part in (0, 1, 2):
        mmu.access(space, gib + part * MIB2)
    assert count(mmu, "l2_hits", "walks") == (0, 6)


# --- Walkers


def waits(walkers: int, *times: int | None) -> list[int]:
    """How long each of walks of 400 cycles, begun at these times, waited."""
    mmu = Mmu(MmuGeometry(walkers=walkers, dram_latency=100, l2_penalty=7))
    space, waited = native_space(*range(99)), [0]
    for page, now in enumerate(times):
        assert mmu.access(space, page * KIB4, now=now) == (OK, 0)
        waited.append(mmu.counters()["walker_wait_cycles"])
    assert mmu.counters()["walk_cycles"] == 400 * len(times)
    return [after - before for before, after in pairwise(waited)]


def test_walk_waits_for_the_walker_that_is_free_first() -> None:
    assert waits(1, 0, 0, 400, 1200, 1200) == [0, 400, 400, 0, 400]
    assert waits(2, 0, 10, 20, 30, 900) == [0, 0, 380, 380, 0]
    assert waits(3, 0, 0, 0, 0) == [0, 0, 0, 400]


def test_walk_without_a_time_takes_no_walker() -> None:
    assert waits(1, None, 0, None, 100) == [0, 0, 0, 300]


def test_faulted_walk_holds_its_walker_and_a_hit_takes_none() -> None:
    space = native_space(0)
    mmu = Mmu(MmuGeometry(l1_load=(TlbArray((0,), 4, 4),), dram_latency=100))
    assert mmu.access(space, 600 * KIB4, now=0) == (SLAT_FAULT, 600 * KIB4)  # three loads
    mmu.access(space, 0, now=100)
    mmu.access(space, 0, now=100)
    assert count(mmu, "walker_wait_cycles", "l1_hits", "walk_cycles") == (200, 1, 400)
    mmu.flush_all()
    mmu.access(space, 0, now=650)  # the second walk ends at 700: flushes stop no walker
    assert count(mmu, "walker_wait_cycles") == (250,)


# --- Flushes of gPA


def guest_of_two() -> tuple[AddressSpace, int, int]:
    """Two pages of data that share all guest tables, and lie 1 GiB apart in gPA."""
    host, guest = PageTable(4, BumpAllocator(HOST_TABLES)), PageTable(4, BumpAllocator(0))
    space = AddressSpace(1, host, guest)
    for page in (0, 1):
        guest.map(VA + page * KIB4, GUEST_DATA + page * GIB1, 0)
        host.map(GUEST_DATA + page * GIB1, page * KIB4, 0)
    back_tables(space, 0)
    return space, VA, VA + KIB4


def test_flush_of_gpa_drops_the_entries_of_that_data() -> None:
    space, one, two = guest_of_two()
    mmu = Mmu(CACHED)
    mmu.access(space, one)
    mmu.access(space, two)
    mmu.flush_gpa(GUEST_DATA + GIB1 - 1, 1)  # ends before the second page
    mmu.flush_gpa(GUEST_DATA + KIB4, 0)
    mmu.flush_gpa(GUEST_DATA + GIB1, KIB4, vpid=1)
    mmu.access(space, one)
    mmu.access(space, two)
    assert count(mmu, "l1_hits") == (2,)
    mmu.flush_gpa(GUEST_DATA + GIB1 + KIB4 - 1, 1)
    mmu.access(space, one)
    mmu.access(space, two)
    assert count(mmu, "l1_hits", "tlb_misses") == (3, 3)


@pytest.mark.parametrize(
    ("flushed", "data_loads"), [(GUEST_DATA, 4), (GUEST_DATA + MIB2, 1), (GUEST_DATA + GIB1, 1)]
)
def test_flush_of_gpa_drops_the_host_walk_cache_above_it(flushed: int, data_loads: int) -> None:
    """All that lead to the data go, that of level 4 too: its walk begins at the root. Those of
    level 2 that lead to the guest's tables stay, as does the data's where its neighbours go."""
    space, one, _ = guest_of_two()
    mmu = Mmu(MmuGeometry(host_walk_cache=PARTS))
    mmu.access(space, one)
    before = mmu.counters()["host_loads"]
    mmu.flush_gpa(flushed, KIB4)
    mmu.access(space, one)
    assert mmu.counters()["host_loads"] - before == 4 + data_loads


@pytest.mark.parametrize(("style", "hits"), [("intel", 0), ("amd", 1)])
def test_flush_of_a_tables_gpa_drops_combined_entries(style: str, hits: int) -> None:
    """The guest's level-1 table lies at gPA 0x3000. An entry that holds its hPA goes with it."""
    space, one, _ = guest_of_two()
    mmu = Mmu(MmuGeometry(style=style, guest_walk_cache=PARTS[:1]))
    mmu.access(space, one)
    mmu.flush_gpa(2 * KIB4, KIB4)
    mmu.access(space, one)
    assert count(mmu, "guest_walk_cache_hits") == (1,)
    mmu.flush_gpa(3 * KIB4, KIB4)
    mmu.access(space, one)
    assert count(mmu, "guest_walk_cache_hits") == (1 + hits,)


def test_flush_of_gpa_drops_nested_tlb_entries_that_overlap() -> None:
    space, one, _ = guest_of_two()
    mmu = Mmu(MmuGeometry(nested_tlb=NestedTlb(8, 8)))
    mmu.access(space, one)
    mmu.flush_gpa(3 * KIB4 - 1, 2)  # the level-2 and the level-1 table
    mmu.access(space, one)
    assert count(mmu, "nested_tlb_hits") == (2,)


# --- Collapse


def full_table(space: AddressSpace) -> PageTable:
    """2 MiB at MIB2 of pages in reverse order, A in one and D in another."""
    table = space.host
    for page in range(512):
        table.map(MIB2 + page * KIB4, (511 - page) * KIB4, 0)
    Mmu(MmuGeometry.bare()).access(space, MIB2 + 5 * KIB4, True)
    return table


def test_collapse_makes_one_leaf_and_gives_the_table_back() -> None:
    space = native_space()
    table = full_table(space)
    pages = table.table_pages
    table.clear_accessed(MIB2 + 5 * KIB4)
    Mmu(MmuGeometry.bare()).access(space, MIB2 + 6 * KIB4)
    table.collapse(MIB2 + 77 * KIB4, 8 * MIB2)
    assert table.lookup(MIB2) == (MIB2, 8 * MIB2, 1, True, True)
    assert table.table_pages == pages - 1


def test_collapse_undoes_a_split_at_any_order() -> None:
    for form, order in ((TableFormat(), 1), (TableFormat(), 2), (TableFormat(3, 14), 1)):
        space = native_space(2, order=order, form=form)
        size = 1 << space.host.shift(order + 1)
        before, pages = space.host.lookup(2 * size), space.host.table_pages
        space.host.split(2 * size)
        space.host.collapse(3 * size - 1, 2 * size)
        assert (space.host.lookup(2 * size), space.host.table_pages) == (before, pages)


def test_collapse_is_refused() -> None:
    table = full_table(native_space())
    with pytest.raises(KeyError, match="not mapped"):
        table.collapse(0, 0)
    with pytest.raises(ValueError, match="does not suit"):
        table.collapse(MIB2, KIB4)
    target = table.unmap(MIB2)[0]
    with pytest.raises(KeyError, match="not mapped"):
        table.collapse(MIB2, 0)
    with pytest.raises(ValueError, match="cannot become"):
        table.collapse(MIB2 + KIB4, 0)  # a hole
    table.map(MIB2, target, 0)
    table.collapse(MIB2, 0)
    with pytest.raises(ValueError, match="cannot become"):
        table.collapse(MIB2, 0)  # large, and alone in its table
    mixed = native_space(0, order=2).host
    mixed.split(0)
    mixed.split(MIB2)
    with pytest.raises(ValueError, match="cannot become"):
        mixed.collapse(0, 0)
    mixed.collapse(MIB2, MIB2)
    mixed.collapse(0, 0)
    with pytest.raises(ValueError, match="cannot become"):
        mixed.collapse(0, 0)  # no leaf is larger


def test_collapse_stops_below_the_root() -> None:
    table = page_table(TableFormat(2, root_bits=1), HOST_TABLES)
    for half in (0, 1):
        table.map(half * MIB2, half * MIB2, 1)
    with pytest.raises(ValueError, match="cannot become"):
        table.collapse(0, 0)
