"""One MMU: the way of an access through TLBs and walks, the flushes, the counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from simvm.hardware.geometry import ENTRY_SHIFTS, PAGE, MmuGeometry
from simvm.reference.replacement import Key, SetAssociative
from simvm.reference.tables import AddressSpace, LeafEntry, Table
from simvm.reference.tlb import (
    ENTRY_ORDERS,
    KIB64,
    Resume,
    Tlb,
    TlbEntry,
    WalkCache,
    page_number,
)

OK, GUEST_FAULT, SLAT_FAULT = 0, 1, 2

COUNTERS = (
    "accesses", "l1_hits", "l2_hits", "tlb_misses", "walks", "walk_loads", "guest_loads",
    "host_loads", "walk_cycles", "penalty_cycles", "faulted_loads", "faulted_cycles",
    "dirty_updates", "nested_tlb_hits", "host_walk_cache_hits", "guest_walk_cache_hits",
    "l2_loads", "llc_loads", "dram_loads", "data_lines", "walker_wait_cycles",
)  # fmt: skip

Overlaps = Callable[[int, int], bool]
"""Whether a start and a size have a byte in common with what is flushed."""


def overlapping(address: int, length: int) -> Overlaps:
    return lambda start, size: max(start, address) < min(start + size, address + length)


def leaf_of(table: Table, address: int) -> LeafEntry:
    """The leaf that a walk for the address found in that table."""
    leaf = table.entry(address)
    assert isinstance(leaf, LeafEntry)
    return leaf


class Fault(Exception):
    """A walk met a missing entry. Its arguments: which fault, for which address."""


class Mmu:
    """The MMU of a CPU that vCPUs run on: `access` is the way in, `counters` what came of it.

    `trace`, when set to a list, gets the hPA of every walk load in order.
    """

    def __init__(self, geometry: MmuGeometry) -> None:
        self._geometry = g = geometry
        self._combined = {"intel": True, "amd": False}[g.style]
        self.trace: list[int] | None = None
        self._l1_load, self._l2 = Tlb(g.l1_load), Tlb(g.l2, g.smash)
        self._l1_store = self._l1_load if g.l1_store is None else Tlb(g.l1_store)
        self._tlbs = (self._l1_load, self._l1_store, self._l2)
        self._groups_pages = any(KIB64 in tlb.orders for tlb in self._tlbs)
        self._guest_walk_cache = WalkCache(g.guest_walk_cache)
        self._host_walk_cache = WalkCache(g.host_walk_cache)
        present = [g.nested_tlb] if g.nested_tlb.entries else []
        self._nested_tlb = [SetAssociative[int](n.entries, n.ways, n.policy) for n in present]
        self._l2_penalty = g.l2_penalty if self._l2.arrays else 0
        self._data_caches = [
            (name, cache.latency, SetAssociative[bool](cache.bytes // 64, cache.ways))
            for name, cache in (("l2_loads", g.cache_l2), ("llc_loads", g.cache_llc))
            if cache.bytes
        ]
        self._walkers_free_at = [0] * g.walkers
        self._count = dict.fromkeys(COUNTERS, 0)
        self._spent: Counter[str] = Counter()

    def counters(self) -> dict[str, int]:
        """All counters since the MMU was made (cycles are CPU cycles)."""
        return dict(self._count)

    # --- One access

    def access(
        self, space: AddressSpace, va: int, write: bool = False, now: int | None = None
    ) -> tuple[int, int]:
        """One load or store: `(OK, 0)`, or a fault and the address of the 4 KiB page it was
        for: in VA for GUEST_FAULT and for a native SLAT_FAULT, else in gPA.

        `now`, in cycles, is for the page walkers: a walk may have to wait for one.
        """
        code, address = self._access(space, va, write, now)
        return code, 0 if code == OK else address

    def translate(self, space: AddressSpace, va: int, write: bool = False) -> tuple[int, int]:
        """An access that says, in place of the 0, which hPA it went to."""
        return self._access(space, va, write, None)

    def _access(
        self, space: AddressSpace, va: int, write: bool, now: int | None
    ) -> tuple[int, int]:
        l1 = self._l1_store if write else self._l1_load
        tag = space.vpid, space.asid
        if entry := l1.probe(tag, va):
            self._count["l1_hits"] += 1
            if write and not entry.dirty:
                self._first_write(space, va, entry)
        elif entry := self._l2.probe(tag, va):
            self._count["l2_hits"] += 1
            self._count["penalty_cycles"] += self._l2_penalty
            copy = replace(entry)
            l1.insert(tag, va, copy)
            if write and not entry.dirty:
                self._first_write(space, va, entry, copy)
        else:
            self._count["tlb_misses"] += 1
            self._count["penalty_cycles"] += self._l2_penalty
            try:
                entry = self._walk(space, va, write)
            except Fault as fault:
                self._count["faulted_loads"] += self._spent["walk_loads"]
                self._count["faulted_cycles"] += self._spent["walk_cycles"]
                code, address = fault.args
                return code, address - address % PAGE
            finally:
                self._occupy_walker(now)
            self._l2.insert(tag, va, entry)
            l1.insert(tag, va, replace(entry))
            self._send_line(entry.hpa + va % entry.size)
            self._count["data_lines"] += 1
        self._count["accesses"] += 1
        return OK, entry.hpa + va % entry.size

    def _occupy_walker(self, now: int | None) -> None:
        """The walk just done, had it begun at `now`: it waits for the first free walker."""
        if now is None:
            return
        free_at = self._walkers_free_at
        walker = free_at.index(min(free_at))
        start = max(now, free_at[walker])
        self._count["walker_wait_cycles"] += start - now
        free_at[walker] = start + self._spent["walk_cycles"]

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

    # --- The walk

    def _walk(self, space: AddressSpace, va: int, write: bool) -> TlbEntry:
        """Translate and set A and D: what a TLB may keep."""
        self._spent.clear()
        start = self._start(self._guest_walk_cache, space, va)
        gpa = None
        if space.guest is None:
            table = self._descend(start.table, va, self._guest_walk_cache, space)
            reached = [(table, va)]
        else:
            guest_table = self._descend_guest(space, start, va)
            gpa = leaf_of(guest_table, va).translate(va)
            reached = [(guest_table, va), (self._nested(space, gpa), gpa)]
        leaves = [leaf_of(table, address) for table, address in reached]
        for leaf in leaves:
            leaf.accessed = True
            leaf.dirty |= write
        self._count["walks"] += 1
        for counter, amount in self._spent.items():
            self._count[counter] += amount
        hpa = leaves[-1].translate(va if gpa is None else gpa)
        order = min((self._order(*place) for place in reached), key=ENTRY_SHIFTS.__getitem__)
        offset = va % (1 << ENTRY_SHIFTS[order])
        return TlbEntry(
            order,
            gpa=None if gpa is None else gpa - offset,
            hpa=hpa - offset,
            dirty=all(leaf.dirty for leaf in leaves),
        )

    def _order(self, table: Table, address: int) -> int:
        """The order of a TLB entry for the leaf alone: that of its size, or of its group."""
        if self._groups_pages and table.group(address):
            return KIB64
        return ENTRY_SHIFTS.index(table.shift)

    def _descend_guest(self, space: AddressSpace, start: Resume, va: int) -> Table:
        """Down to the guest table that holds the leaf, from one whose hPA may be known."""
        cache = self._guest_walk_cache
        table, place = start
        if place is None:
            place = self._translate_table(space, table, va)[0]
        while True:
            entry = self._load("guest_loads", table, place, va)
            if entry is None:
                raise Fault(GUEST_FAULT, va)
            if isinstance(entry, LeafEntry):
                return table
            if not self._combined:
                cache.insert((space.vpid, space.asid), va, table, Resume(entry))
            place, whole = self._translate_table(space, entry, va)
            if self._combined:
                found = Resume(entry, place if whole else None)
                cache.insert((space.vpid, space.asid), va, table, found)
            table = entry

    def _translate_table(self, space: AddressSpace, table: Table, va: int) -> tuple[int, bool]:
        """The hPA where a guest table lies, as seen from its entry for `va`, and whether
        all of it lies there. Reading it counts as a write in the SLAT."""
        offset = 8 * table.index(va)
        gpa = table.address + offset
        for nested_tlb in self._nested_tlb:
            for order in ENTRY_ORDERS:
                base = nested_tlb.probe((space.vpid, order, page_number(gpa, order)))
                if base is not None:
                    self._count["nested_tlb_hits"] += 1
                    self._spent["walk_cycles"] += self._geometry.walk_cache_latency
                    size = 1 << ENTRY_SHIFTS[order]
                    return base + gpa % size - offset, size >= table.size
        host_table = self._nested(space, gpa)
        leaf = leaf_of(host_table, gpa)
        leaf.accessed = leaf.dirty = True
        order = ENTRY_SHIFTS.index(leaf.shift)
        for nested_tlb in self._nested_tlb:
            nested_tlb.insert((space.vpid, order, page_number(gpa, order)), leaf.target)
        return leaf.translate(gpa) - offset, 1 << leaf.shift >= table.size

    def _nested(self, space: AddressSpace, gpa: int) -> Table:
        """One walk of the SLAT, for one gPA: down to the table that holds the leaf."""
        start = self._start(self._host_walk_cache, space, gpa)
        return self._descend(start.table, gpa, self._host_walk_cache, space)

    def _descend(self, table: Table, address: int, cache: WalkCache, space: AddressSpace) -> Table:
        """From a table that lies in hPA down to the one that holds the leaf."""
        entry = self._load("host_loads", table, table.address, address)
        if entry is None:
            raise Fault(SLAT_FAULT, address)
        if isinstance(entry, LeafEntry):
            return table
        cache.insert(self._owner(cache, space), address, table, Resume(entry))
        return self._descend(entry, address, cache, space)

    def _start(self, cache: WalkCache, space: AddressSpace, address: int) -> Resume:
        """Where a walk starts: at the table that the walk cache knows, else at the root."""
        of_guest = cache is self._guest_walk_cache
        root = space.guest if of_guest and space.guest else space.host
        found = cache.probe(self._owner(cache, space), address, root)
        if found is None:
            return Resume(root.top)
        self._count["guest_walk_cache_hits" if of_guest else "host_walk_cache_hits"] += 1
        self._spent["walk_cycles"] += self._geometry.walk_cache_latency
        return found

    def _owner(self, cache: WalkCache, space: AddressSpace) -> tuple[int, ...]:
        """Whose entries of that walk cache the space's walks may use."""
        return (space.vpid, space.asid) if cache is self._guest_walk_cache else (space.vpid,)

    def _load(
        self, counter: str, table: Table, place: int, address: int
    ) -> LeafEntry | Table | None:
        """Read the entry for `address` of a table that lies at hPA `place`."""
        hpa = place + 8 * table.index(address)
        if self.trace is not None:
            self.trace.append(hpa)
        served_by, latency = self._send_line(hpa)
        self._count[served_by] += 1
        self._spent.update({counter: 1, "walk_loads": 1, "walk_cycles": latency})
        return table.entry(address)

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

    # --- Flushes

    def flush_all(self) -> None:
        """Empty every structure that holds translations. The data caches keep their lines."""
        self._drop(lambda key: True)

    def flush_guest(self, vpid: int = 0) -> None:
        """Drop all of one VM: what a changed SLAT entry costs where no range is named."""
        self._drop(lambda key: key[0] == vpid)

    def flush_asid(self, asid: int, vpid: int = 0) -> None:
        """Drop one address space's TLB and guest walk cache entries."""
        self._flush(vpid, asid, lambda start, size: True)

    def flush_range(self, asid: int, va: int, length: int, vpid: int = 0) -> None:
        """The same, but of its TLB entries only those that overlap the range of bytes."""
        self._flush(vpid, asid, overlapping(va, length))

    def flush_gpa(self, gpa: int, length: int, vpid: int = 0) -> None:
        """Drop what the SLAT's entries for a range of gPA may have made, of one VM."""
        overlaps = overlapping(gpa, length)

        def in_tlb(key: Key, entry: TlbEntry) -> bool:
            return key[0] == vpid and entry.gpa is not None and overlaps(entry.gpa, entry.size)

        def in_nested_tlb(key: Key, hpa: int) -> bool:
            owner, order, number = key
            shift = ENTRY_SHIFTS[order]
            return owner == vpid and overlaps(number << shift, 1 << shift)

        def in_host_walk_cache(key: Key, found: Resume) -> bool:
            owner, number = key
            span = found.table.reach
            return owner == vpid and overlaps(number * span, span)

        def in_guest_walk_cache(key: Key, found: Resume) -> bool:
            return key[0] == vpid and overlaps(found.table.address, found.table.size)

        for tlb in self._tlbs:
            for array in tlb.arrays:
                array.drop(in_tlb)
        for nested_tlb in self._nested_tlb:
            nested_tlb.drop(in_nested_tlb)
        for part in self._host_walk_cache.parts.values():
            part.drop(in_host_walk_cache)
        if self._combined:
            for part in self._guest_walk_cache.parts.values():
                part.drop(in_guest_walk_cache)

    def _flush(self, vpid: int, asid: int, overlaps: Overlaps) -> None:
        def in_tlb(key: Key, entry: TlbEntry) -> bool:
            *tag, order, number = key
            va = number << ENTRY_SHIFTS[order]
            return tag == [vpid, asid] and overlaps(va - va % entry.size, entry.size)

        for tlb in self._tlbs:
            for array in tlb.arrays:
                array.drop(in_tlb)
        for part in self._guest_walk_cache.parts.values():
            part.drop(lambda key, _: key[:2] == (vpid, asid))

    def _drop(self, doomed: Callable[[Key], bool]) -> None:
        """Drop from every structure that holds translations what has such a key."""
        for tlb in self._tlbs:
            for array in tlb.arrays:
                array.drop(lambda key, _: doomed(key))
        for cache in (self._guest_walk_cache, self._host_walk_cache):
            for part in cache.parts.values():
                part.drop(lambda key, _: doomed(key))
        for nested_tlb in self._nested_tlb:
            nested_tlb.drop(lambda key, _: doomed(key))
