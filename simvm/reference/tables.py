"""Page tables of every format: 2 to 5 levels, granules of 4, 16 and 64 KiB, any width of root."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from simvm.hardware.geometry import PAGE

LEAF_ORDERS = {12: (0, 1, 2), 14: (0, 1), 16: (0, 1)}
"""By granule shift, the orders that a leaf may have: order o stands at level o + 1."""
MOST_CONCATENATED = 4
"""log2 of how many tables in a row a root may be."""
REACH_BITS = 57
GROUP = 16
"""Pages of 4 KiB that one TLB entry may hold where a format says `contiguous`."""


class Allocator(Protocol):
    """Where a table gets its 4 KiB pages: one by one, or in runs aligned to their size."""

    def allocate_4k(self) -> int: ...
    def free_4k(self, address: int) -> None: ...
    def allocate_run(self, pages: int) -> int: ...
    def free_run(self, address: int, pages: int) -> None: ...


class BumpAllocator:
    """Hands out pages upwards from `base`; what is given back is the next to go out."""

    def __init__(self, base: int = 0) -> None:
        self._fresh = base
        self._free: defaultdict[int, list[int]] = defaultdict(list)

    def allocate_4k(self) -> int:
        return self.allocate_run(1)

    def free_4k(self, address: int) -> None:
        self.free_run(address, 1)

    def allocate_run(self, pages: int) -> int:
        if self._free[pages]:
            return self._free[pages].pop()
        size = pages * PAGE
        address = -(-self._fresh // size) * size
        self._fresh = address + size
        return address

    def free_run(self, address: int, pages: int) -> None:
        self._free[pages].append(address)


class Leaf(NamedTuple):
    """What `PageTable.lookup` reports: `base` is the leaf's own virtual address."""

    base: int
    target: int
    order: int
    accessed: bool
    dirty: bool


@dataclass
class LeafEntry:
    """A table entry that ends a walk. It maps 2^shift bytes."""

    target: int
    order: int
    shift: int
    accessed: bool = False
    dirty: bool = False

    def translate(self, address: int) -> int:
        return self.target + address % (1 << self.shift)


@dataclass
class Table:
    """One table of 2^bits entries, each for 2^shift bytes of what it translates.

    `address` and `size` say where the table itself lies: in hPA, or in gPA if it is a
    guest's.
    """

    address: int
    size: int
    level: int
    shift: int
    bits: int
    entries: dict[int, LeafEntry | Table]
    contiguous: bool = False

    @property
    def reach(self) -> int:
        """How many bytes it translates."""
        return 1 << (self.shift + self.bits)

    def index(self, address: int) -> int:
        return (address >> self.shift) % (1 << self.bits)

    def entry(self, address: int) -> LeafEntry | Table | None:
        return self.entries.get(self.index(address))

    def holds_leaf(self) -> bool:
        return any(isinstance(e, LeafEntry) or e.holds_leaf() for e in self.entries.values())

    def group(self, address: int) -> list[LeafEntry]:
        """The leaves beside the address that may share a TLB entry of 64 KiB; or none.

        They are sixteen aligned pages of 4 KiB, mapped to sixteen aligned ones in a row.
        """
        if not self.contiguous or self.level > 1:
            return []
        first = self.index(address) // GROUP * GROUP
        found = [self.entries.get(index) for index in range(first, first + GROUP)]
        leaves = [entry for entry in found if isinstance(entry, LeafEntry)]
        if len(leaves) < GROUP or leaves[0].target % (GROUP * PAGE):
            return []
        start = leaves[0].target
        in_a_row = [leaf.target for leaf in leaves] == [start + n * PAGE for n in range(GROUP)]
        return leaves if in_a_row else []


class PageTable:
    """A radix table. The arguments are those of `simvm.hardware.geometry.TableFormat`.

    The root, at `root`, is allocated at once; the tables below it when `map` or `split`
    needs them, from the upper level to the lower. `table_pages` counts all in pages of
    4 KiB. Any address within a leaf names that leaf; where there is none, KeyError.
    """

    def __init__(
        self,
        levels: int,
        allocator: Allocator,
        granule_shift: int = 12,
        root_bits: int = 0,
        contiguous: bool = False,
    ) -> None:
        if not 2 <= levels <= 5:
            raise ValueError(f"levels (={levels}) must be 2 to 5")
        if granule_shift not in LEAF_ORDERS:
            raise ValueError(f"granule_shift (={granule_shift}) must be 12, 14 or 16")
        if contiguous and granule_shift != 12:
            raise ValueError("contiguous is for a granule_shift of 12")
        self._granule_shift, self._contiguous = granule_shift, contiguous
        self._bits = granule_shift - 3
        self._root_bits = root_bits or self._bits
        if not 0 < self._root_bits <= self._bits + MOST_CONCATENATED:
            most = self._bits + MOST_CONCATENATED
            raise ValueError(f"root_bits (={root_bits}) must be 0 to {most}")
        if self.shift(levels) + self._root_bits > REACH_BITS:
            raise ValueError(f"{levels=}, {granule_shift=}, {root_bits=} reach over 2^{REACH_BITS}")
        self._allocator = allocator
        self.levels = levels
        self.orders = tuple(o for o in LEAF_ORDERS[granule_shift] if o + 1 <= levels)
        self.table_pages = 0
        self.top = self._new_table(levels)
        self.root = self.top.address

    def shift(self, level: int) -> int:
        """log2 of what one entry of a table of that level maps."""
        return self._granule_shift + self._bits * (level - 1)

    def map(self, address: int, target: int, order: int) -> None:
        """Enter a leaf, A and D clear, in place of any lower table that holds no leaf.

        Raises ValueError if no leaf has that order, an address is misaligned or out of
        reach, or the leaf would overlap one that is present.
        """
        if order not in self.orders or (address | target) % (1 << self.shift(order + 1)):
            raise ValueError(f"{address:#x} -> {target:#x} does not suit a leaf of {order=}")
        if not self._reaches(address):
            raise ValueError(f"{address:#x} is out of reach of {self.levels} levels")
        table = self.top
        while table.level > order + 1:
            entry = table.entry(address)
            if entry is None:
                entry = table.entries[table.index(address)] = self._new_table(table.level - 1)
            elif isinstance(entry, LeafEntry):
                raise ValueError(f"{address:#x} is mapped already, by a leaf of {entry.order=}")
            table = entry
        entry = table.entry(address)
        if entry:
            if isinstance(entry, LeafEntry) or entry.holds_leaf():
                raise ValueError(f"{address:#x} of order {order} overlaps what is present")
            self.prune(entry)
            self._release(entry)
        table.entries[table.index(address)] = LeafEntry(target, order, table.shift)

    def unmap(self, address: int) -> tuple[int, int]:
        """Remove a leaf; return its target and order. The tables stay until `prune`."""
        table, leaf = self._find(address)
        del table.entries[table.index(address)]
        return leaf.target, leaf.order

    def split(self, address: int) -> None:
        """Replace a leaf by a table of the next lower order, same A and D. ValueError at 0."""
        table, leaf = self._find(address)
        if leaf.order == 0:
            raise ValueError(f"the leaf at {address:#x} is of order 0 and cannot be split")
        lower = self._new_table(table.level - 1)
        for index in range(1 << lower.bits):
            target = leaf.target + (index << lower.shift)
            bits = leaf.accessed, leaf.dirty
            lower.entries[index] = LeafEntry(target, leaf.order - 1, lower.shift, *bits)
        table.entries[table.index(address)] = lower

    def collapse(self, address: int, target: int) -> None:
        """Replace the table that holds the leaf by one leaf at `target`, the A and D of any.

        Raises ValueError if the table is not full of leaves, if none may be so large, or
        if `target` is misaligned.
        """
        table, leaf = self._find(address)
        order = leaf.order + 1
        leaves = [entry for entry in table.entries.values() if isinstance(entry, LeafEntry)]
        if order not in self.orders or len(leaves) < 1 << table.bits:
            raise ValueError(f"what is mapped at {address:#x} cannot become one of {order=}")
        if target % table.reach:
            raise ValueError(f"{target:#x} does not suit a leaf of {order=}")
        upper = self.top
        while isinstance(entry := upper.entry(address), Table) and entry is not table:
            upper = entry
        accessed, dirty = any(e.accessed for e in leaves), any(e.dirty for e in leaves)
        large = LeafEntry(target, order, upper.shift, accessed, dirty)
        upper.entries[upper.index(address)] = large
        self._release(table)

    def prune(self, table: Table | None = None) -> None:
        """Give back every table below the root (or `table`) that holds no leaf, bottom up."""
        table = table or self.top
        for index in sorted(table.entries):
            entry = table.entries[index]
            if isinstance(entry, Table):
                self.prune(entry)
                if not entry.entries:
                    del table.entries[index]
                    self._release(entry)

    def lookup(self, address: int) -> Leaf | None:
        """The leaf over `address`, if there is one. Sets no bits."""
        try:
            leaf = self.leaf(address)
        except KeyError:
            return None
        base = address - address % (1 << leaf.shift)
        return Leaf(base, leaf.target, leaf.order, leaf.accessed, leaf.dirty)

    def clear_accessed(self, address: int) -> bool:
        """Clear A in a leaf, and in the group that it is of; return whether any had it."""
        table, leaf = self._find(address)
        leaves = table.group(address) or [leaf]
        was_accessed = any(leaf.accessed for leaf in leaves)
        for leaf in leaves:
            leaf.accessed = False
        return was_accessed

    def leaf(self, address: int) -> LeafEntry:
        """The entry itself of the leaf over `address`."""
        return self._find(address)[1]

    def _find(self, address: int) -> tuple[Table, LeafEntry]:
        table = self.top
        while self._reaches(address):
            entry = table.entry(address)
            if isinstance(entry, LeafEntry):
                return table, entry
            if entry is None:
                break
            table = entry
        raise KeyError(f"{address:#x} is not mapped")

    def _reaches(self, address: int) -> bool:
        return 0 <= address < self.top.reach

    def _new_table(self, level: int) -> Table:
        """A root of more than the usual bits is several tables in a row; of less, one in part."""
        bits = self._root_bits if level == self.levels else self._bits
        size = 8 << max(bits, self._bits)
        pages = size // PAGE
        self.table_pages += pages
        one = pages == 1
        address = self._allocator.allocate_4k() if one else self._allocator.allocate_run(pages)
        return Table(address, size, level, self.shift(level), bits, {}, self._contiguous)

    def _release(self, table: Table) -> None:
        pages = table.size // PAGE
        self.table_pages -= pages
        if pages == 1:
            self._allocator.free_4k(table.address)
        else:
            self._allocator.free_run(table.address, pages)


@dataclass(frozen=True)
class AddressSpace:
    """Nested: gVA through `guest` to gPA, through `host` (the SLAT) to hPA.
    Native, without a guest table: VA through `host` to hPA.

    `vpid` is the number of the VM; all spaces of one vpid have one `host` table, unless
    they are native.
    """

    asid: int
    host: PageTable
    guest: PageTable | None = None
    vpid: int = 0
