"""The readable twin of the compiled core: page tables and one vCPU's MMU.

Models what `docs/translation.md` specifies: how a virtual address becomes a host
physical one through one table (native) or two (nested), what TLBs, walk caches, the
nested TLB and the data caches spare of it, which A and D bits it sets, and what it
costs in loads and cycles. It is there to be read as an explanation, and for tests
that hold the core to it, counter for counter.

The heart is three methods of `Mmu`. `_descend` walks a table whose pages lie in hPA.
`_nested` is one such walk through the SLAT, for one gPA. `_descend_guest` walks the
guest's table, and translates the page of each table on its way before it can read
it: that is where the n*m + n + m loads come from.

Left out: generators of accesses, protection bits, global pages, instruction fetches,
and addresses beyond the reach of a table's root.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, replace
from typing import Generic, NamedTuple, Protocol, TypeVar

from simvm.hardware.geometry import ORDER_BYTES, ORDERS, MmuGeometry, TlbArray, WalkCachePart

OK, GUEST_FAULT, SLAT_FAULT = 0, 1, 2

COUNTERS = (
    "accesses", "l1_hits", "l2_hits", "tlb_misses", "walks", "walk_loads", "guest_loads",
    "host_loads", "walk_cycles", "penalty_cycles", "faulted_loads", "faulted_cycles",
    "dirty_updates", "nested_tlb_hits", "host_walk_cache_hits", "guest_walk_cache_hits",
    "l2_loads", "llc_loads", "dram_loads", "data_lines",
)  # fmt: skip
Value = TypeVar("Value")
Key = tuple[int, ...]


def table_index(address: int, level: int) -> int:
    """Which of the 512 entries of a level's table the address selects."""
    return (address >> (12 + 9 * (level - 1))) % 512


def page_number(address: int, order: int) -> int:
    """The number of the page of that order which holds the address."""
    return address // ORDER_BYTES[order]


class Allocator(Protocol):
    """Where a page table gets its 4 KiB pages (byte addresses)."""

    def allocate_4k(self) -> int: ...
    def free_4k(self, address: int) -> None: ...


class BumpAllocator:
    """Hands out pages upwards from `base`; a page given back is the next to go out."""

    def __init__(self, base: int = 0) -> None:
        self._fresh = itertools.count(base, ORDER_BYTES[0])
        self._free: list[int] = []

    def allocate_4k(self) -> int:
        return self._free.pop() if self._free else next(self._fresh)

    def free_4k(self, address: int) -> None:
        self._free.append(address)


class Leaf(NamedTuple):
    """What `PageTable.lookup` reports: `base` is the leaf's own virtual address."""

    base: int
    target: int
    order: int
    accessed: bool
    dirty: bool


@dataclass
class LeafEntry:
    """A table entry that ends a walk."""

    target: int
    order: int
    accessed: bool = False
    dirty: bool = False

    def translate(self, address: int) -> int:
        return self.target + address % ORDER_BYTES[self.order]


@dataclass
class Table:
    """One table page. `address` is in hPA, or in gPA if the table is a guest's."""

    address: int
    level: int
    entries: dict[int, LeafEntry | Table]

    def holds_leaf(self) -> bool:
        return any(isinstance(e, LeafEntry) or e.holds_leaf() for e in self.entries.values())


Entry = LeafEntry | Table


class PageTable:
    """A radix table of 4 or 5 levels with leaves of 4 KiB, 2 MiB and 1 GiB.

    The root's page, at `root`, is allocated at once; the pages below it when `map` or
    `split` needs them, from the upper level to the lower. `table_pages` counts them
    all. Any address within a leaf names that leaf; where there is none, KeyError.
    """

    def __init__(self, levels: int, allocator: Allocator) -> None:
        if levels not in (4, 5):
            raise ValueError(f"levels (={levels}) must be 4 or 5")
        self._allocator = allocator
        self.table_pages = 0
        self.top = self._new_table(levels)
        self.root = self.top.address

    def map(self, address: int, target: int, order: int) -> None:
        """Enter a leaf, A and D clear, in place of any lower table that holds no leaf.

        Raises ValueError if the order is unknown, an address is misaligned or out of
        reach, or the leaf would overlap one that is present.
        """
        if order not in ORDERS or address % ORDER_BYTES[order] or target % ORDER_BYTES[order]:
            raise ValueError(f"{address:#x} -> {target:#x} does not suit a leaf of {order=}")
        if not self._reaches(address):
            raise ValueError(f"{address:#x} is out of reach of {self.top.level} levels")
        table = self.top
        while table.level > order + 1:
            index = table_index(address, table.level)
            entry = table.entries.get(index)
            if entry is None:
                entry = table.entries[index] = self._new_table(table.level - 1)
            elif isinstance(entry, LeafEntry):
                raise ValueError(f"{address:#x} is mapped already, by a leaf of {entry.order=}")
            table = entry
        index = table_index(address, table.level)
        entry = table.entries.get(index)
        if entry:
            if isinstance(entry, LeafEntry) or entry.holds_leaf():
                raise ValueError(f"{address:#x} of order {order} overlaps what is present")
            self.prune(entry)
            self._release(entry)
        table.entries[index] = LeafEntry(target, order)

    def unmap(self, address: int) -> tuple[int, int]:
        """Remove a leaf; return its target and order. The tables stay until `prune`."""
        table, leaf = self._find(address)
        del table.entries[table_index(address, table.level)]
        return leaf.target, leaf.order

    def split(self, address: int) -> None:
        """Replace a leaf by 512 of the next lower order, same A and D. ValueError at 0."""
        table, leaf = self._find(address)
        if leaf.order == 0:
            raise ValueError(f"the leaf at {address:#x} is of order 0 and cannot be split")
        order = leaf.order - 1
        lower = self._new_table(table.level - 1)
        for index in range(512):
            target = leaf.target + index * ORDER_BYTES[order]
            lower.entries[index] = LeafEntry(target, order, leaf.accessed, leaf.dirty)
        table.entries[table_index(address, table.level)] = lower

    def prune(self, table: Table | None = None) -> None:
        """Give back every page below the root (or `table`) that holds no leaf, bottom up."""
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
        base = address - address % ORDER_BYTES[leaf.order]
        return Leaf(base, *astuple(leaf))

    def clear_accessed(self, address: int) -> bool:
        """Clear A in a leaf; return what it was."""
        leaf = self.leaf(address)
        was_accessed, leaf.accessed = leaf.accessed, False
        return was_accessed

    def leaf(self, address: int) -> LeafEntry:
        """The entry itself of the leaf over `address`."""
        return self._find(address)[1]

    def _find(self, address: int) -> tuple[Table, LeafEntry]:
        table = self.top
        while self._reaches(address):
            entry = table.entries.get(table_index(address, table.level))
            if isinstance(entry, LeafEntry):
                return table, entry
            if entry is None:
                break
            table = entry
        raise KeyError(f"{address:#x} is not mapped")

    def _reaches(self, address: int) -> bool:
        return 0 <= address < 1 << (12 + 9 * self.top.level)

    def _new_table(self, level: int) -> Table:
        self.table_pages += 1
        return Table(self._allocator.allocate_4k(), level, {})

    def _release(self, table: Table) -> None:
        self.table_pages -= 1
        self._allocator.free_4k(table.address)


@dataclass(frozen=True)
class AddressSpace:
    """Nested: gVA through `guest` to gPA, through `host` (the SLAT) to hPA.
    Native, without a guest table: VA through `host` to hPA."""

    asid: int
    host: PageTable
    guest: PageTable | None = None


class Lru:
    """True least recently used: a list of one set's ways, the oldest first."""

    def __init__(self, ways: int) -> None:
        self._order = list(range(ways))

    def touch(self, way: int) -> None:
        self._order.remove(way)
        self._order.append(way)

    def victim(self) -> int:
        return self._order[0]


class TreePlru:
    """One bit per inner node of a binary tree over one set's ways: 0 says left is next.

    Node 1 is the root, node n has the children 2n and 2n + 1, the leaves are the ways
    in order, and the rightmost of them may not exist.
    """

    def __init__(self, ways: int) -> None:
        self._ways = ways
        self._width = 1 << (ways - 1).bit_length()
        self._bits = [0] * self._width

    def touch(self, way: int) -> None:
        node = self._width + way
        while node > 1:
            parent, is_right = divmod(node, 2)
            self._bits[parent] = 1 - is_right
            node = parent

    def victim(self) -> int:
        node, leaves = 1, self._width
        while leaves > 1:
            node, leaves = 2 * node + self._bits[node], leaves // 2
            first_way = node * leaves - self._width
            if first_way >= self._ways:
                node -= 1
        return node - self._width


POLICIES: dict[str, Callable[[int], Lru | TreePlru]] = {"lru": Lru, "plru": TreePlru}


class SetAssociative(Generic[Value]):
    """Sets of ways that hold values by key. The last part of a key selects the set."""

    def __init__(self, entries: int, ways: int, policy: str = "lru") -> None:
        if ways < 1 or entries < ways or entries % ways:
            raise ValueError(f"entries (={entries}) must be a multiple of ways (={ways})")
        self.sets = entries // ways
        empty: tuple[Key, Value] | None = None
        self._places = [[empty] * ways for _ in range(self.sets)]
        self._replacement = [POLICIES[policy](ways) for _ in range(self.sets)]

    def probe(self, key: Key) -> Value | None:
        """The value held for the key, which becomes the most recently used of its set."""
        number = key[-1] % self.sets
        for way, place in enumerate(self._places[number]):
            if place is not None and place[0] == key:
                self._replacement[number].touch(way)
                return place[1]
        return None

    def insert(self, key: Key, value: Value) -> None:
        """Enter a key that is not held: in the first free place, else in the victim's."""
        number = key[-1] % self.sets
        places, replacement = self._places[number], self._replacement[number]
        way = places.index(None) if None in places else replacement.victim()
        places[way] = (key, value)
        replacement.touch(way)

    def drop(self, doomed: Callable[[Key], bool]) -> None:
        """Free the places of all `doomed` keys."""
        for places in self._places:
            for way, place in enumerate(places):
                if place is not None and doomed(place[0]):
                    places[way] = None


@dataclass
class TlbEntry:
    """What a TLB knows of a page: `dirty` says that a store has no D left to set."""

    order: int
    dirty: bool


class Tlb:
    """One level of TLB. A key is an address-space id, an order and a page number."""

    def __init__(self, shapes: Iterable[TlbArray]) -> None:
        present = [shape for shape in shapes if shape.entries]
        self.arrays = [SetAssociative[TlbEntry](s.entries, s.ways, s.policy) for s in present]
        self._holding = {
            order: [a for a, s in zip(self.arrays, present, strict=True) if order in s.orders]
            for order in ORDERS
        }
        for order, arrays in self._holding.items():
            if len(arrays) > 2 or len({array.sets for array in arrays}) > 1:
                raise ValueError(f"order {order} must be held by one array or by two equal ones")

    def probe(self, asid: int, va: int) -> TlbEntry | None:
        for order in ORDERS:
            number = page_number(va, order)
            for array in self._array(order, number):
                if entry := array.probe((asid, order, number)):
                    return entry
        return None

    def insert(self, asid: int, va: int, entry: TlbEntry) -> None:
        """Enter the entry, unless no array holds its order."""
        number = page_number(va, entry.order)
        for array in self._array(entry.order, number):
            array.insert((asid, entry.order, number), entry)

    def _array(self, order: int, number: int) -> list[SetAssociative[TlbEntry]]:
        """Where that page of that order has its place: in no array, in one, or in either."""
        arrays = self._holding[order]
        if len(arrays) < 2:
            return arrays
        return [arrays[number // arrays[0].sets % 2]]


class Resume(NamedTuple):
    """Where a walk may start: a table, and the hPA of its page (unless yet to be found)."""

    table: Table
    page: int | None = None


class WalkCache:
    """Per level k, the tables of level k - 1 that level-k entries were seen to point to.

    A key is an address-space id (0 in a host walk cache) and the address above level k.
    """

    def __init__(self, shapes: Iterable[WalkCachePart]) -> None:
        present = [shape for shape in shapes if shape.entries]
        self.parts = {s.level: SetAssociative[Resume](s.entries, s.ways, s.policy) for s in present}

    def probe(self, owner: int, address: int, root_level: int) -> Resume | None:
        """The lowest table known for the address: the one that leaves least to load."""
        for level in range(2, root_level + 1):
            if level in self.parts:
                found = self.parts[level].probe((owner, address >> (12 + 9 * (level - 1))))
                if found:
                    return found
        return None

    def insert(self, owner: int, address: int, level: int, found: Resume) -> None:
        """Keep what the entry of that level for the address points to."""
        if level in self.parts:
            self.parts[level].insert((owner, address >> (12 + 9 * (level - 1))), found)


class Fault(Exception):
    """A walk met a missing entry. Its arguments: which fault, for which address."""


class Mmu:
    """One vCPU's MMU: `access` is the way in, `counters` what came of it.

    `trace`, when set to a list, gets the hPA of every walk load in order.
    """

    def __init__(self, geometry: MmuGeometry) -> None:
        self._geometry = g = geometry
        self._combined = {"intel": True, "amd": False}[g.style]
        self.trace: list[int] | None = None
        self.flush_all()
        self._l2_penalty = g.l2_penalty if self._l2.arrays else 0
        self._data_caches = [
            (name, cache.latency, SetAssociative[bool](cache.bytes // 64, cache.ways))
            for name, cache in (("l2_loads", g.cache_l2), ("llc_loads", g.cache_llc))
            if cache.bytes
        ]
        self._count = dict.fromkeys(COUNTERS, 0)
        self._spent: Counter[str] = Counter()

    def counters(self) -> dict[str, int]:
        """All counters since the MMU was made (cycles are CPU cycles)."""
        return dict(self._count)

    def access(self, space: AddressSpace, va: int, write: bool = False) -> tuple[int, int]:
        """One load or store: `(OK, 0)`, or a fault and the address of the 4 KiB page it was
        for: in VA for GUEST_FAULT and for a native SLAT_FAULT, else in gPA."""
        l1 = self._l1_store if write else self._l1_load
        if entry := l1.probe(space.asid, va):
            self._count["l1_hits"] += 1
            if write and not entry.dirty:
                self._first_write(space, va, entry)
        elif entry := self._l2.probe(space.asid, va):
            self._count["l2_hits"] += 1
            self._count["penalty_cycles"] += self._l2_penalty
            copy = replace(entry)
            l1.insert(space.asid, va, copy)
            if write and not entry.dirty:
                self._first_write(space, va, entry, copy)
        else:
            self._count["tlb_misses"] += 1
            self._count["penalty_cycles"] += self._l2_penalty
            try:
                hpa, entry = self._walk(space, va, write)
            except Fault as fault:
                self._count["faulted_loads"] += self._spent["walk_loads"]
                self._count["faulted_cycles"] += self._spent["walk_cycles"]
                code, address = fault.args
                return code, address - address % ORDER_BYTES[0]
            self._l2.insert(space.asid, va, entry)
            l1.insert(space.asid, va, replace(entry))
            self._send_line(hpa)
            self._count["data_lines"] += 1
        self._count["accesses"] += 1
        return OK, 0

    def flush_all(self) -> None:
        """Empty every structure that holds translations. The data caches keep their lines."""
        g = self._geometry
        self._l1_load, self._l2 = Tlb(g.l1_load), Tlb(g.l2)
        self._l1_store = self._l1_load if g.l1_store is None else Tlb(g.l1_store)
        self._guest_walk_cache = WalkCache(g.guest_walk_cache)
        self._host_walk_cache = WalkCache(g.host_walk_cache)
        present = [g.nested_tlb] if g.nested_tlb.entries else []
        self._nested_tlb = [SetAssociative[int](n.entries, n.ways, n.policy) for n in present]

    def flush_guest(self) -> None:
        """What a changed SLAT entry drops: as this MMU serves one guest, everything."""
        self.flush_all()

    def flush_asid(self, asid: int) -> None:
        """Drop one address space's TLB and guest walk cache entries."""
        self._flush(asid, lambda start, size: True)

    def flush_range(self, asid: int, va: int, length: int) -> None:
        """The same, but of its TLB entries only those that overlap the range of bytes."""
        self._flush(asid, lambda start, size: max(start, va) < min(start + size, va + length))

    def _flush(self, asid: int, overlaps: Callable[[int, int], bool]) -> None:
        def in_tlb(key: Key) -> bool:
            owner, order, number = key
            return owner == asid and overlaps(number * ORDER_BYTES[order], ORDER_BYTES[order])

        for array in (*self._l1_load.arrays, *self._l1_store.arrays, *self._l2.arrays):
            array.drop(in_tlb)
        for part in self._guest_walk_cache.parts.values():
            part.drop(lambda key: key[0] == asid)

    def _first_write(self, space: AddressSpace, va: int, *entries: TlbEntry) -> None:
        """Set D in the TLB entries, and in the leaves unless one of them is gone."""
        self._count["dirty_updates"] += 1
        for entry in entries:
            entry.dirty = True
        try:
            leaves = [(space.guest or space.host).leaf(va)]
            if space.guest:
                leaves.append(space.host.leaf(leaves[0].translate(va)))
        except KeyError:
            return  # a stale entry that nobody flushed
        for leaf in leaves:
            leaf.dirty = True

    def _walk(self, space: AddressSpace, va: int, write: bool) -> tuple[int, TlbEntry]:
        """Translate and set A and D: the data's hPA, and what a TLB may keep."""
        self._spent.clear()
        cache, slat = self._guest_walk_cache, space.host
        start = self._start(cache, space.asid, va, space.guest or space.host)
        if space.guest is None:
            leaves = [self._descend(start.table, va, cache, space.asid)]
            hpa = leaves[0].translate(va)
        else:
            page = self._translate_table(slat, start.table) if start.page is None else start.page
            guest_leaf = self._descend_guest(space, start.table, page, va)
            gpa = guest_leaf.translate(va)
            leaves = [guest_leaf, self._nested(slat, gpa)]
            hpa = leaves[1].translate(gpa)
        for leaf in leaves:
            leaf.accessed = True
            leaf.dirty |= write
        self._count["walks"] += 1
        for counter, amount in self._spent.items():
            self._count[counter] += amount
        order = min(leaf.order for leaf in leaves)
        return hpa, TlbEntry(order, dirty=all(leaf.dirty for leaf in leaves))

    def _descend_guest(self, space: AddressSpace, table: Table, page: int, va: int) -> LeafEntry:
        """From a guest table, whose page lies at hPA `page`, down to the leaf."""
        entry = self._load("guest_loads", table, page, va)
        if entry is None:
            raise Fault(GUEST_FAULT, va)
        if isinstance(entry, LeafEntry):
            return entry
        cache = self._guest_walk_cache
        if self._combined:
            next_page = self._translate_table(space.host, entry)
            cache.insert(space.asid, va, table.level, Resume(entry, next_page))
        else:
            cache.insert(space.asid, va, table.level, Resume(entry))
            next_page = self._translate_table(space.host, entry)
        return self._descend_guest(space, entry, next_page, va)

    def _translate_table(self, slat: PageTable, table: Table) -> int:
        """The hPA of a guest table's page. Reading it counts as a write in the SLAT."""
        gpa = table.address
        for nested_tlb in self._nested_tlb:
            for order in ORDERS:
                base = nested_tlb.probe((order, page_number(gpa, order)))
                if base is not None:
                    self._count["nested_tlb_hits"] += 1
                    self._spent["walk_cycles"] += self._geometry.walk_cache_latency
                    return base + gpa % ORDER_BYTES[order]
        leaf = self._nested(slat, gpa)
        leaf.accessed = leaf.dirty = True
        for nested_tlb in self._nested_tlb:
            nested_tlb.insert((leaf.order, page_number(gpa, leaf.order)), leaf.target)
        return leaf.translate(gpa)

    def _nested(self, slat: PageTable, gpa: int) -> LeafEntry:
        """One walk of the SLAT, for one gPA."""
        start = self._start(self._host_walk_cache, 0, gpa, slat)
        return self._descend(start.table, gpa, self._host_walk_cache, 0)

    def _descend(self, table: Table, address: int, cache: WalkCache, owner: int) -> LeafEntry:
        """From a table, whose page lies in hPA, down to the leaf."""
        entry = self._load("host_loads", table, table.address, address)
        if entry is None:
            raise Fault(SLAT_FAULT, address)
        if isinstance(entry, LeafEntry):
            return entry
        cache.insert(owner, address, table.level, Resume(entry))
        return self._descend(entry, address, cache, owner)

    def _start(self, cache: WalkCache, owner: int, address: int, table: PageTable) -> Resume:
        """Where a walk starts: at the table that the walk cache knows, else at the root."""
        found = cache.probe(owner, address, table.top.level)
        if found is None:
            return Resume(table.top)
        hits = "guest" if cache is self._guest_walk_cache else "host"
        self._count[f"{hits}_walk_cache_hits"] += 1
        self._spent["walk_cycles"] += self._geometry.walk_cache_latency
        return found

    def _load(self, counter: str, table: Table, page: int, address: int) -> Entry | None:
        """Read the entry for `address` of a table whose page lies at hPA `page`."""
        index = table_index(address, table.level)
        hpa = page + 8 * index
        if self.trace is not None:
            self.trace.append(hpa)
        served_by, latency = self._send_line(hpa)
        self._count[served_by] += 1
        self._spent.update({counter: 1, "walk_loads": 1, "walk_cycles": latency})
        return table.entries.get(index)

    def _send_line(self, hpa: int, nearest: int = 0) -> tuple[str, int]:
        """Send a line through the data caches: what served it, in how many cycles."""
        if nearest == len(self._data_caches):
            return "dram_loads", self._geometry.dram_latency
        name, latency, cache = self._data_caches[nearest]
        if cache.probe((hpa // 64,)):
            return name, latency
        served_by = self._send_line(hpa, nearest + 1)
        cache.insert((hpa // 64,), True)
        return served_by
