"""The twin's page tables: what may be mapped, and which table pages that takes."""

from __future__ import annotations

import pytest
from spaces import GIB1, KIB4, MIB2, native_space

from simvm.hardware.geometry import MmuGeometry
from simvm.reference import BumpAllocator, Leaf, Mmu, PageTable


def test_map_refuses_what_is_askew_or_taken() -> None:
    table = PageTable(4, BumpAllocator())
    table.map(MIB2, 4 * MIB2, 1)
    for address, target, order, why in (
        (KIB4, 0, 1, "does not suit"),
        (0, KIB4, 1, "does not suit"),
        (0, 0, 3, "does not suit"),
        (1 << 48, 0, 0, "out of reach"),
        (MIB2, 0, 1, "overlaps"),
        (MIB2 + KIB4, 0, 0, "mapped already"),
        (0, 0, 2, "overlaps"),
    ):
        with pytest.raises(ValueError, match=why):
            table.map(address, target, order)
    assert table.table_pages == 3


def test_tables_are_allocated_from_the_top_and_pruned_from_the_bottom() -> None:
    class Log(BumpAllocator):
        freed: list[int]

        def free_4k(self, address: int) -> None:
            self.freed.append(address)

    log = Log()
    log.freed = []
    table = PageTable(4, log)
    assert (table.root, table.table_pages) == (0, 1)
    table.map(0, 0, 0)
    assert table.table_pages == 4
    assert table.unmap(123) == (0, 0)
    assert table.table_pages == 4
    table.prune()
    assert (table.table_pages, log.freed) == (1, [0x3000, 0x2000, 0x1000])


def test_prune_keeps_what_holds_a_leaf() -> None:
    table = PageTable(4, BumpAllocator())
    table.map(0, 0, 0)
    table.map(MIB2, 0, 0)
    table.unmap(0)
    table.prune()
    assert table.table_pages == 4  # the level-1 table of the first 2 MiB went
    assert table.lookup(MIB2) == Leaf(MIB2, 0, 0, False, False)


def test_large_leaf_takes_the_place_of_an_empty_table() -> None:
    table = PageTable(4, BumpAllocator())
    table.map(0, 0, 0)
    with pytest.raises(ValueError, match="overlaps"):
        table.map(0, 0, 2)
    table.unmap(0)
    table.map(0, GIB1, 2)
    assert table.table_pages == 2
    assert table.lookup(5) == Leaf(0, GIB1, 2, False, False)


def test_split_inherits_bits_and_costs_one_table() -> None:
    space = native_space(3, order=2)
    Mmu(MmuGeometry.bare()).access(space, 3 * GIB1, write=True)
    table = space.host
    pages = table.table_pages
    table.split(3 * GIB1 + 7)
    table.split(3 * GIB1 + MIB2)
    assert table.table_pages == pages + 2
    first, last = 3 * GIB1, 4 * GIB1 - 1
    assert table.lookup(first) == Leaf(first, first, 1, True, True)
    assert table.lookup(last) == Leaf(4 * GIB1 - MIB2, 4 * GIB1 - MIB2, 1, True, True)
    small = first + MIB2 + 9 * KIB4
    assert table.lookup(small + 1) == Leaf(small, small, 0, True, True)
    with pytest.raises(ValueError, match="order 0"):
        table.split(small)


@pytest.mark.parametrize("what", ["unmap", "split", "clear_accessed"])
def test_absent_leaf_is_a_key_error(what: str) -> None:
    table = PageTable(5, BumpAllocator())
    with pytest.raises(KeyError, match="not mapped"):
        getattr(table, what)(KIB4)
    assert table.lookup(KIB4) is None
