"""TLBs and walk caches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from simvm.hardware.geometry import ENTRY_SHIFTS, TlbArray, WalkCachePart
from simvm.reference.replacement import SetAssociative
from simvm.reference.tables import PageTable, Table

ENTRY_ORDERS = range(len(ENTRY_SHIFTS))
GIB1, MIB2, KIB64 = (ENTRY_SHIFTS.index(shift) for shift in (30, 21, 16))
"""Orders of TLB entries."""

Tag = tuple[int, int]
"""The vpid and the asid of an address space."""


def page_number(address: int, order: int) -> int:
    """The number of the page of that order which holds the address."""
    return address >> ENTRY_SHIFTS[order]


@dataclass
class TlbEntry:
    """A translation as a TLB keeps it.

    `order` is that of the page; `hpa` is where its first byte lies, and `gpa` likewise,
    unless its space is native. `dirty` says that a store has no D left to set.
    """

    order: int
    gpa: int | None
    hpa: int
    dirty: bool

    @property
    def size(self) -> int:
        return 1 << ENTRY_SHIFTS[self.order]


class Tlb:
    """One level of TLB. A key is a space's tag, an order and a page number.

    With `smash`, if no array holds 1 GiB, such an entry has a place among those of
    2 MiB, once for each part of it that was met. It still is what it is: found there,
    it gives 1 GiB to the TLB before it, and a flush of any byte of the 1 GiB drops it.
    """

    def __init__(self, shapes: Iterable[TlbArray], smash: bool = False) -> None:
        present = [shape for shape in shapes if shape.entries]
        self.arrays = [SetAssociative[TlbEntry](s.entries, s.ways, s.policy) for s in present]
        self.orders = {order for shape in present for order in shape.orders}
        self._smash = smash and GIB1 not in self.orders
        self._holding = {
            order: [a for a, s in zip(self.arrays, present, strict=True) if order in s.orders]
            for order in ENTRY_ORDERS
        }
        for order, arrays in self._holding.items():
            if len(arrays) > 2 or len({array.sets for array in arrays}) > 1:
                raise ValueError(f"order {order} must be held by one array or by two equal ones")

    def probe(self, tag: Tag, va: int) -> TlbEntry | None:
        for order in ENTRY_ORDERS:
            number = page_number(va, order)
            for array in self._array(order, number):
                if entry := array.probe((*tag, order, number)):
                    return entry
        return None

    def insert(self, tag: Tag, va: int, entry: TlbEntry) -> None:
        """Enter the entry, unless no array holds its order."""
        order = MIB2 if self._smash and entry.order == GIB1 else entry.order
        number = page_number(va, order)
        for array in self._array(order, number):
            array.insert((*tag, order, number), entry)

    def _array(self, order: int, number: int) -> list[SetAssociative[TlbEntry]]:
        """Where that page of that order has its place: in no array, in one, or in either."""
        arrays = self._holding[order]
        if len(arrays) < 2:
            return arrays
        return [arrays[number // arrays[0].sets % 2]]


class Resume(NamedTuple):
    """Where a walk may start: a table, and the hPA where it lies (unless yet to be found)."""

    table: Table
    place: int | None = None


class WalkCache:
    """Per level k, the tables of level k - 1 that level-k entries were seen to point to.

    A key is an owner (a space's tag, or the vpid alone in a host walk cache) and the
    address above level k.
    """

    def __init__(self, shapes: Iterable[WalkCachePart]) -> None:
        present = [shape for shape in shapes if shape.entries]
        self.parts = {s.level: SetAssociative[Resume](s.entries, s.ways, s.policy) for s in present}

    def probe(self, owner: tuple[int, ...], address: int, root: PageTable) -> Resume | None:
        """The lowest table known for the address: the one that leaves least to load."""
        for level in range(2, root.levels + 1):
            if level in self.parts:
                found = self.parts[level].probe((*owner, address >> root.shift(level)))
                if found:
                    return found
        return None

    def insert(self, owner: tuple[int, ...], address: int, table: Table, found: Resume) -> None:
        """Keep what the entry of that table for the address points to."""
        if table.level in self.parts:
            self.parts[table.level].insert((*owner, address >> table.shift), found)
