"""Blocks made whole in the core: pages that move, mappings that are joined, what both sides map."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenarios_small import BLOCK, MIB, PAGE
from test_core_memory import Guest

from simvm import _core


def addresses(block: int, pages: list[int]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array([block * BLOCK + page * PAGE for page in pages], dtype=np.uint64)


def everything_is_accounted_for(guest: Guest, own: int = 0) -> None:
    """Frames are free, mapped, tables, or `own` pages of the host, and none is two of these."""
    assert guest.host.frames.recount() == guest.host.free_bytes
    claimed = np.zeros(128 * MIB // PAGE // 64 + 1, dtype=np.uint64)
    assert guest.backing.claim(claimed)
    mapped = int(np.bitwise_count(claimed).sum()) * PAGE
    assert guest.free - guest.host.free_bytes == mapped + guest.host.partial_bytes + own * PAGE
    assert guest.host.claim(claimed)
    assert int(np.bitwise_count(claimed).sum()) * PAGE == mapped + own * PAGE


# --- pages of the host's own ------------------------------------------------------------


def test_scattered_pages_break_their_blocks() -> None:
    host = _core.HostMemory(8 * MIB)
    host.scatter(addresses(1, [3, 500]), movable=True)
    assert (host.frames.free_blocks, host.free_bytes) == (3, 8 * MIB - 2 * PAGE)
    assert host.frames.recount() == host.free_bytes
    with pytest.raises(MemoryError, match="is not free"):
        host.scatter(addresses(1, [3]), movable=True)


def test_a_block_is_emptied_into_the_highest_broken_one() -> None:
    """Blocks 0 and 2 of four have pages: those of 0 go to 2, which has room."""
    host = _core.HostMemory(8 * MIB)
    host.scatter(addresses(0, [7, 9, 511]), movable=True)
    host.scatter(addresses(2, [0]), movable=True)
    assert host.next_to_empty(0, 3) == 0
    moved, cursor, free = host.empty(0, 3)
    assert (moved, cursor, free) == ([(0, 0)] * 3, 2, True)
    assert (host.frames.free_blocks, host.free_bytes) == (3, 8 * MIB - 4 * PAGE)
    assert host.next_to_empty(0, 2) == 2  # none: only block 2 is broken
    with pytest.raises(MemoryError):
        host.scatter(addresses(2, [1]), movable=True)  # where one of them is now


def test_a_block_with_a_page_that_cannot_move_is_passed_over() -> None:
    host = _core.HostMemory(8 * MIB)
    host.scatter(addresses(0, [0]), movable=False)
    host.scatter(addresses(0, [1]), movable=True)
    host.scatter(addresses(1, [0]), movable=True)
    assert host.next_to_empty(0, 3) == 1
    assert host.empty(0, 3) == ([], 3, False)  # the first page stays, and so do all


def test_scanners_that_meet_leave_the_rest_where_it_is() -> None:
    """The only other broken block has one page left: one of two pages moves."""
    host = _core.HostMemory(8 * MIB)
    host.scatter(addresses(0, [0, 1]), movable=True)
    host.scatter(addresses(1, list(range(511))), movable=True)
    moved, cursor, free = host.empty(0, 3)
    assert (len(moved), cursor, free) == (1, 0, False)
    assert host.frames.recount() == host.free_bytes == 8 * MIB - 513 * PAGE


# --- pages of guests --------------------------------------------------------------------


def test_mappings_accessed_bits_and_the_order_of_lists_follow_a_page() -> None:
    guest = Guest(order=0)
    guest.write(0, 4 * PAGE)
    before = guest.folios()                       # and their A bits are clear now
    guest.host.scatter(addresses(40, [0]), movable=True)
    guest.write(PAGE, PAGE)                       # accessed and written again: A is set
    old = [guest.host.address_of(folio) for folio in before]
    assert {frame // BLOCK for frame in old} == {old[0] // BLOCK}
    moved, _, free = guest.host.empty(old[0] // BLOCK, 63)
    assert moved == [(7, page * PAGE) for page in range(4)]
    assert free
    for page in range(4):
        leaf = guest.table.lookup(page * PAGE)
        assert leaf is not None
        assert leaf.target // BLOCK == 40
        assert (leaf.accessed, leaf.dirty) == (page == 1, True)
    assert [guest.host.owner_of(folio) for folio in guest.folios()] == moved  # order kept
    everything_is_accounted_for(guest, own=1)


def test_page_tables_stay_where_they_are() -> None:
    guest = Guest(order=0)
    guest.write(0, PAGE)
    tables = next(
        block for block in range(64)
        if guest.host.next_to_empty(block, block + 1) == block + 1
        and guest.table.root // BLOCK == block
    )  # fmt: skip
    assert guest.host.empty(tables, 63) == ([], 63, False)


# --- collapse ---------------------------------------------------------------------------


@pytest.mark.parametrize("deposits", [True, False])
def test_a_collapse_makes_one_leaf_and_frees_pages_and_a_table(deposits: bool) -> None:
    """500 of 512 pages are there: 2 MiB more are held, 500 pages and two tables fewer."""
    guest = Guest(order=0, deposits=deposits)
    guest.write(0, 500 * PAGE)
    assert guest.backing.look_at(0) == (500, 12, 0, 500, 0)
    tables = guest.table.table_pages
    frame = guest.host.frames.allocate_2m()
    guest.backing.collapse(0, frame)
    leaf = guest.table.lookup(5 * PAGE)
    assert leaf is not None
    assert (leaf.base, leaf.target, leaf.order) == (0, frame, 1)
    assert leaf.accessed
    assert leaf.dirty
    assert guest.table.leaves == (0, 1, 0)
    assert guest.table.table_pages == guest.table.mirror_pages == tables - 1
    assert guest.table.deposited_pages == int(deposits)
    assert guest.backing.look_at(0) is None       # not 4 KiB pages any more
    (folio,) = guest.folios()
    assert guest.host.order_of(folio) == 1
    everything_is_accounted_for(guest)
    guest.backing.zap(PAGE, PAGE)                 # and it can be split again
    assert guest.table.leaves == (511, 0, 0)
    everything_is_accounted_for(guest)


def test_what_is_swapped_out_must_come_back_before_a_collapse() -> None:
    guest = Guest(order=0)
    guest.write(0, 512 * PAGE)
    guest.host.swap_out(guest.folios()[3], 9)
    assert guest.backing.look_at(0) == (511, 0, 1, 0, 0)
    frame = guest.host.frames.allocate_2m()
    with pytest.raises(ValueError, match="4 KiB pages alone"):
        guest.backing.collapse(0, frame)
    guest.backing.hold(0, 2 * PAGE)
    assert guest.backing.look_at(0) == (509, 0, 1, 0, 2)


def test_a_page_in_slower_memory_keeps_its_range_as_it_is() -> None:
    guest = Guest(order=0, tier=4 * MIB)
    guest.write(0, 512 * PAGE)
    folio = guest.folios()[3]
    frame = guest.host.address_of(folio)
    guest.host.swap_out(folio, 9)
    guest.backing.swap_in(3 * PAGE, guest.host.tier.allocate_4k(), 1)
    guest.host.frames.free_4k(frame)
    assert guest.backing.look_at(0) == (512, 0, 0, 0, 1)
    with pytest.raises(ValueError, match="4 KiB pages alone"):
        guest.backing.collapse(0, guest.host.frames.allocate_2m())


def test_the_pages_of_a_partly_unmapped_block_give_it_back() -> None:
    """Its 4 KiB mappings lie within a block that is held whole; a collapse frees that block."""
    guest = Guest()
    guest.write(0, BLOCK)
    guest.backing.zap(0, MIB)
    assert guest.backing.look_at(0) == (256, 256, 0, 256, 0)
    frame = guest.host.frames.allocate_2m()
    guest.backing.collapse(0, frame)
    assert guest.host.partial_bytes == 0
    assert guest.held == BLOCK + guest.tables
    everything_is_accounted_for(guest)


@given(st.lists(st.integers(0, 16 * 512 - 1), min_size=1, max_size=300, unique=True), st.data())
def test_no_page_is_lost_whatever_moves_or_is_joined(
    pages: list[int], data: st.DataObject
) -> None:
    guest = Guest(order=0)
    for page in pages:
        guest.write(page * PAGE, PAGE)
    guest.host.scatter(addresses(50, [1, 2]), movable=True)
    for _ in range(8):
        if data.draw(st.booleans()):
            block = data.draw(st.integers(0, 62))
            moved, cursor, free = guest.host.empty(block, 63)
            assert block <= cursor <= 63
            for owner, address in moved:
                assert owner == 0 or address // PAGE in pages
            assert not free or guest.host.next_to_empty(block, block + 1) == block + 1
        else:
            at = data.draw(st.integers(0, 15)) * BLOCK
            if guest.backing.look_at(at) is not None:
                guest.backing.collapse(at, guest.host.frames.allocate_2m())
        everything_is_accounted_for(guest, own=2)
    for page in pages:
        assert guest.table.lookup(page * PAGE) is not None


# --- huge on both sides -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("guest_order", "host_small", "expected"),
    [(1, 0, 8), (1, 1, 6), (0, 0, 0), (2, 1, 6)],
)
def test_bytes_that_are_huge_on_both_sides(
    guest_order: int, host_small: int, expected: int
) -> None:
    """8 MiB in the guest; the host has four 2 MiB leaves, or three and 4 KiB pages."""
    guest = Guest()
    guest.write(0, 8 * MIB)
    if host_small:
        guest.backing.zap(2 * MIB, PAGE)
    table = _core.PageTable(4, _core.BlockAllocator(2 << 30, 1 << 30))
    span = cast(int, PAGE << (9 * guest_order))
    for at in range(0, 8 * MIB, span):
        table.map((1 << 40) + at, at, guest_order)
    assert guest.backing.huge_bytes(table) == expected * MIB
