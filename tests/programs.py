"""What tests of the MMU are made of: spaces built by hand, and programs by Hypothesis.

A `Program` is plain data. A `Machine` carries one out on one implementation of the
MMU, either `simvm.reference` or `simvm._core`, and says after each step all that can be
observed; two machines that run the same program can be compared step by step.

Programs keep to the rules of `docs/translation.md`: whoever changes a table flushes
what may have cached it. Only the unmapping of a guest (or native) leaf is sometimes
left unflushed, so that stale TLB entries answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

from hypothesis import strategies as st

from simvm.hardware.geometry import (
    ORDER_BYTES,
    DataCache,
    MmuGeometry,
    NestedTlb,
    TlbArray,
    WalkCachePart,
)
from simvm.reference import OK, AddressSpace, BumpAllocator, Mmu, PageTable

# --- Spaces built by hand

KIB4, MIB2, GIB1 = ORDER_BYTES
HOST_TABLES = 1 << 40  # where the SLAT's pages lie in hPA, far from any data
GUEST_DATA = 8 * GIB1  # where the guest's data lies in gPA, far from its tables
VA = 0x40_8060_7000  # indices 0, 258, 3, 7 at levels 4 to 1: no two walks share a line


def nested_space(
    guest_order: int = 0,
    host_order: int = 0,
    guest_levels: int = 4,
    host_levels: int = 4,
    tables_order: int | None = None,
    vas: tuple[int, ...] = (VA,),
    asid: int = 1,
) -> AddressSpace:
    """A guest whose tables lie from gPA 0 on, backed by host leaves of `tables_order`.

    The page of each VA is mapped to the same offset from GUEST_DATA, and that to the
    same gPA in the host, so that all addresses can be read at a glance.
    """
    host = PageTable(host_levels, BumpAllocator(HOST_TABLES))
    guest = PageTable(guest_levels, BumpAllocator(0))
    space = AddressSpace(asid, host, guest)
    for va in vas:
        base = va - va % ORDER_BYTES[guest_order]
        guest.map(base, GUEST_DATA + base, guest_order)
    tables_order = host_order if tables_order is None else tables_order
    for page in range(0, guest.table_pages * KIB4, ORDER_BYTES[tables_order]):
        host.map(page, page, tables_order)
    for va in vas:
        gpa = GUEST_DATA + va
        if host.lookup(gpa) is None:
            base = gpa - gpa % ORDER_BYTES[host_order]
            host.map(base, base, host_order)
    return space


def native_space(*pages: int, order: int = 0, asid: int = 1) -> AddressSpace:
    """A table that maps the pages of those numbers to frames of the same numbers."""
    host = PageTable(4, BumpAllocator(HOST_TABLES))
    for page in pages:
        host.map(page * ORDER_BYTES[order], page * ORDER_BYTES[order], order)
    return AddressSpace(asid, host)


def count(mmu: Mmu, *names: str) -> tuple[int, ...]:
    counters = mmu.counters()
    return tuple(counters[name] for name in names)


def touch(mmu: Mmu, space: AddressSpace, *pages: int, order: int = 0) -> list[bool]:
    """Load from each page in turn; say of each whether an L1 TLB had it."""
    hits = []
    for page in pages:
        before = mmu.counters()["l1_hits"]
        assert mmu.access(space, page * ORDER_BYTES[order]) == (OK, 0)
        hits.append(mmu.counters()["l1_hits"] > before)
    return hits


# --- Geometries

TABLES_BYTES = 64 << 20
HOST_TABLES_BASE = 1 << 30
GUEST_TABLES_BASE = 0
HOST_DATA_BASE = 1 << 36  # within the reach of the smallest data cache (256 GiB)
MOST_FAULTS_OF_AN_ACCESS = 64

POLICIES = st.sampled_from(["lru", "plru"])
ORDER = st.sampled_from([0, 0, 0, 1, 1, 2])


@st.composite
def shapes(draw: st.DrawFn, most_sets: int = 4) -> tuple[int, int]:
    """Entries and ways, from direct-mapped to fully associative."""
    sets = draw(st.integers(1, most_sets))
    ways = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 8, 12, 16]))
    if sets == 1 and draw(st.booleans()):
        ways = draw(st.integers(1, 64))
    return sets * ways, ways


@st.composite
def tlbs(draw: st.DrawFn) -> tuple[TlbArray, ...]:
    """The arrays of one TLB: none, split by order, shared, or two interleaved."""
    layout = draw(
        st.sampled_from(
            [
                (),
                ((0,),),
                ((0,), (1,), (2,)),
                ((0, 1), (2,)),
                ((0, 1, 2),),
                ((0, 1), (0, 1)),
                ((0, 1), (1, 2)),
                ((0,), (0,), (1, 2)),
                ((0, 1, 2), (0, 1, 2)),
            ]
        )
    )
    orders = [order for held in layout for order in held]
    interleaved = len(orders) > len(set(orders))
    common = draw(shapes())
    arrays = []
    for held in layout:
        entries, ways = common if interleaved else draw(shapes())
        if draw(st.integers(0, 9)) == 0:
            entries = 0
        arrays.append(TlbArray(held, entries, ways, draw(POLICIES)))
    return tuple(arrays)


@st.composite
def walk_caches(draw: st.DrawFn) -> tuple[WalkCachePart, ...]:
    levels = sorted(draw(st.sets(st.integers(2, 5))))
    parts = []
    for level in levels:
        entries, ways = draw(shapes(2))
        if draw(st.integers(0, 9)) == 0:
            entries = 0
        parts.append(WalkCachePart(level, entries, ways, draw(POLICIES)))
    return tuple(parts)


@st.composite
def nested_tlbs(draw: st.DrawFn) -> NestedTlb:
    if draw(st.booleans()):
        return NestedTlb()
    entries, ways = draw(shapes())
    return NestedTlb(entries, ways, draw(POLICIES))


@st.composite
def data_caches(draw: st.DrawFn) -> DataCache:
    """Absent, or 1 to 8 KiB."""
    if draw(st.integers(0, 2)) == 0:
        return DataCache()
    size = draw(st.sampled_from([1024, 2048, 3072, 4096, 8192]))
    return DataCache(size, draw(st.sampled_from([1, 2, 4, 8, 16])), draw(st.integers(0, 60)))


@st.composite
def geometries(draw: st.DrawFn) -> MmuGeometry:
    return MmuGeometry(
        style=draw(st.sampled_from(["intel", "amd"])),
        l1_load=draw(tlbs()),
        l1_store=draw(st.none() | tlbs()),
        l2=draw(tlbs()),
        l2_penalty=draw(st.integers(0, 20)),
        guest_walk_cache=draw(walk_caches()),
        host_walk_cache=draw(walk_caches()),
        nested_tlb=draw(nested_tlbs()),
        walk_cache_latency=draw(st.integers(0, 5)),
        cache_l2=draw(data_caches()),
        cache_llc=draw(data_caches()),
        dram_latency=draw(st.integers(61, 300)),
    )


# --- Steps

# Table indices that make neighbours, and that reach over the ends of every table.
REGIONS: tuple[int, ...] = (0, 1, 2, 511, 512, 1023, (1 << 18) - 1)
PIECES = (0, 1, 2, 3, 511)
PAGES = (*range(12), 510, 511)


@st.composite
def addresses(draw: st.DrawFn) -> int:
    """A virtual address, any byte, of a few regions that lie close and far apart."""
    region: int = draw(st.sampled_from(REGIONS))
    piece: int = draw(st.sampled_from(PIECES))
    page: int = draw(st.sampled_from(PAGES))
    byte: int = draw(st.sampled_from([0, 64, 4095]))
    return (region << 30) + (piece << 21) + (page << 12) + byte


class Demand(NamedTuple):
    """How faults of a step are served: the orders to map in the guest and in the host.

    The guest's data begins at gPA frame `frame` of the guest's order; `rounds` of 0
    leave the fault as it is.
    """

    rounds: int
    guest_order: int
    host_order: int
    frame: int


class Access(NamedTuple):
    """`length` accesses from `address` on, `stride` bytes apart; a bit of `writes` each.

    After `period` of them they start over, and find again what still is in the TLBs. With
    `leaf` the address is taken as an offset in a mapped leaf, if there is one.
    """

    space: int
    address: int
    leaf: int | None
    stride: int
    length: int
    period: int
    writes: int
    demand: Demand


class Map(NamedTuple):
    """Map a leaf in table `table` at `address`, aligned down unless `askew`."""

    table: int
    address: int
    frame: int
    order: int
    askew: bool


class Change(NamedTuple):
    """Unmap, split, or clear A of, the leaf `leaf` of table `table`; then flush by `flush`."""

    what: str
    table: int
    leaf: int
    flush: str


class Absent(NamedTuple):
    """Unmap, split, or clear A, at an address that may not be mapped; then flush all."""

    what: str
    table: int
    address: int


class Prune(NamedTuple):
    table: int


class Flush(NamedTuple):
    what: str
    space: int
    address: int
    length: int


Step = Access | Map | Change | Absent | Prune | Flush

DEMANDS = st.builds(
    Demand,
    rounds=st.sampled_from([0, 2, MOST_FAULTS_OF_AN_ACCESS, MOST_FAULTS_OF_AN_ACCESS]),
    guest_order=ORDER,
    host_order=ORDER,
    frame=st.integers(0, 15),
)
ACCESSES = st.builds(
    Access,
    space=st.integers(0, 2),
    address=addresses(),
    leaf=st.none() | st.integers(0, 30),
    stride=st.sampled_from([0, 64, 4096, 4096, 8192, 5 << 12, 1 << 21, 1 << 30]),
    length=st.integers(1, 40),
    period=st.integers(1, 20),
    writes=st.integers(0, (1 << 40) - 1),
    demand=DEMANDS,
)
MAPS = st.builds(
    Map,
    table=st.integers(0, 3),
    address=addresses(),
    frame=st.integers(0, 15),
    order=ORDER,
    askew=st.integers(0, 9).map(lambda n: n == 0),
)
CHANGES = st.builds(
    Change,
    what=st.sampled_from(["unmap", "unmap", "split", "split", "clear_accessed"]),
    table=st.integers(0, 3),
    leaf=st.integers(0, 30),
    flush=st.sampled_from(["none", "range", "asid", "all", "guest"]),
)
ABSENTEES = st.builds(
    Absent,
    what=st.sampled_from(["unmap", "split", "clear_accessed"]),
    table=st.integers(0, 3),
    address=addresses(),
)
FLUSHES = st.builds(
    Flush,
    what=st.sampled_from(["all", "guest", "asid", "range"]),
    space=st.integers(0, 2),
    address=addresses(),
    length=st.sampled_from([0, 1, 4096, 3 << 12, 1 << 21, 1 << 30, 1 << 40]),
)
# Accesses are most of a program, or nothing would be cached to be wrong about.
STEPS = st.one_of(
    ACCESSES,
    ACCESSES,
    ACCESSES,
    ACCESSES,
    MAPS,
    CHANGES,
    CHANGES,
    FLUSHES,
    ABSENTEES,
    st.builds(Prune, table=st.integers(0, 3)),
)


@dataclass(frozen=True)
class Program:
    """An MMU, the levels of the host's table and of each guest's, and the steps.

    Without guest levels, `native` spaces each have a table of `host_levels`.
    """

    geometry: MmuGeometry
    host_levels: int
    guest_levels: tuple[int, ...]
    native: int
    steps: tuple[Step, ...]


@st.composite
def programs(draw: st.DrawFn) -> Program:
    levels = st.sampled_from([4, 5])
    nested = draw(st.integers(0, 3)) > 0
    return Program(
        geometry=draw(geometries()),
        host_levels=draw(levels),
        guest_levels=tuple(draw(st.lists(levels, min_size=1, max_size=3))) if nested else (),
        native=0 if nested else draw(st.integers(1, 3)),
        steps=tuple(draw(st.lists(STEPS, min_size=15, max_size=60))),
    )


# --- Running them


class Machine:
    """One implementation with one MMU and the address spaces that a program asks for.

    `allocator(bytes, base)` makes what hands out table pages. Tables are numbered: the
    guests' (or the native spaces') first, in the order of the spaces, then the SLAT.
    """

    def __init__(
        self, twin: ModuleType, allocator: Callable[[int, int], Any], program: Program
    ) -> None:
        self._twin = twin
        self.mmu = twin.Mmu(program.geometry)
        in_host = allocator(TABLES_BYTES, HOST_TABLES_BASE)
        in_guest = allocator(TABLES_BYTES, GUEST_TABLES_BASE)
        self._nested = bool(program.guest_levels)
        if self._nested:
            slat = twin.PageTable(program.host_levels, in_host)
            guests = [twin.PageTable(levels, in_guest) for levels in program.guest_levels]
            self.spaces = [
                twin.AddressSpace(self._asid(n), slat, guest) for n, guest in enumerate(guests)
            ]
            self.tables = [*guests, slat]
            self._levels = [*program.guest_levels, program.host_levels]
        else:
            self.tables = [
                twin.PageTable(program.host_levels, in_host) for _ in range(program.native)
            ]
            self.spaces = [
                twin.AddressSpace(self._asid(n), table) for n, table in enumerate(self.tables)
            ]
            self._levels = [program.host_levels] * program.native
        # Per table, the bases of its leaves and their orders, as the program made them.
        self._leaves: list[dict[int, int]] = [{} for _ in self.tables]

    def observe(self, step: Step) -> tuple[Any, ...]:
        """Take one step; return what came of it, the loads it made, and the counters."""
        self.record_loads()
        outcome = getattr(self, "_" + type(step).__name__.lower())(step)
        tables = [(table.root, table.table_pages) for table in self.tables]
        return outcome, self.recorded_loads(), tables, self.mmu.counters()

    def record_loads(self) -> None:
        """Begin to record the hPA of each walk load (here as the twin does it)."""
        self.mmu.trace = []

    def recorded_loads(self) -> list[int]:
        """The walk loads since `record_loads`."""
        return list(self.mmu.trace)

    def leaves(self) -> list[list[tuple[Any, ...]]]:
        """Every leaf of every table, with its A and D."""
        return [
            [tuple(table.lookup(base + ORDER_BYTES[order] // 2)) for base, order in found.items()]
            for table, found in zip(self.tables, self._leaves, strict=True)
        ]

    def _access(self, step: Access) -> list[Any]:
        number = step.space % len(self.spaces)
        space = self.spaces[number]
        start = self._wrapped(number, step.address)
        if step.leaf is not None and self._leaves[number]:
            base, order = self._pick(number, step.leaf)
            start = base + step.address % ORDER_BYTES[order]
        outcome = []
        for turn in range(step.length):
            va = self._wrapped(number, start + turn % step.period * step.stride)
            write = bool(step.writes >> turn & 1)
            result = self.mmu.access(space, va, write)
            outcome.append(result)
            rounds = 0
            while result[0] != self._twin.OK and rounds < step.demand.rounds:
                outcome.append(self._serve(number, result, step.demand))
                result = self.mmu.access(space, va, write)
                outcome.append(result)
                rounds += 1
        return outcome

    def _serve(self, number: int, fault: tuple[int, int], demand: Demand) -> list[Any]:
        """Map what was missing: in the order asked for, or in the largest that fits."""
        code, address = fault
        in_host = code == self._twin.SLAT_FAULT
        table = len(self.tables) - 1 if in_host and self._nested else number
        order = demand.host_order if in_host else demand.guest_order
        outcome = []
        while order >= 0:
            base = address & -ORDER_BYTES[order]
            frame = demand.frame + (address >> 12) % 64
            outcome.append(self._try_map(table, base, frame, order))
            if outcome[-1] == "mapped":
                break
            order -= 1
        return outcome

    def _map(self, step: Map) -> str:
        number = step.table % len(self.tables)
        address = self._wrapped(number, step.address)
        if not step.askew:
            address &= -ORDER_BYTES[step.order]
        return self._try_map(number, address, step.frame, step.order)

    def _try_map(self, number: int, address: int, frame: int, order: int) -> str:
        """Map to frame `frame` of that order, in the part of memory that the table maps."""
        table = self.tables[number]
        to_guest = self._nested and number < len(self.spaces)
        target = (0 if to_guest else HOST_DATA_BASE) + frame * ORDER_BYTES[order]
        pages = table.table_pages
        try:
            table.map(address, target, order)
        except ValueError:
            return "refused"
        if table.table_pages < pages:
            self.mmu.flush_all()
        self._leaves[number][address] = order
        return "mapped"

    def _change(self, step: Change) -> Any:
        number = step.table % len(self.tables)
        if not self._leaves[number]:
            return None
        base, order = self._pick(number, step.leaf)
        outcome = self._apply(step.what, number, base + ORDER_BYTES[order] // 2)
        changed = step.what != "clear_accessed"
        if self._nested and number == len(self.tables) - 1:
            if changed and step.flush in ("all", "none", "asid"):
                self.mmu.flush_all()
            elif changed:
                self.mmu.flush_guest()
        elif step.flush == "none":
            if step.what == "split":
                self.mmu.flush_asid(self._asid(number))
        else:
            self._flush(Flush(step.flush, number, base, ORDER_BYTES[order]))
        return outcome

    def _absent(self, step: Absent) -> Any:
        number = step.table % len(self.tables)
        outcome = self._apply(step.what, number, self._wrapped(number, step.address))
        self.mmu.flush_all()
        return outcome

    def _apply(self, what: str, number: int, address: int) -> Any:
        table, leaves = self.tables[number], self._leaves[number]
        leaf = table.lookup(address)
        try:
            outcome = getattr(table, what)(address)
        except (KeyError, ValueError) as error:
            return type(error)
        if what == "unmap":
            del leaves[leaf.base]
        elif what == "split":
            del leaves[leaf.base]
            size = ORDER_BYTES[leaf.order - 1]
            # Those that programs are likely to meet again stand for all 512.
            for index in (*range(16), 510, 511):
                leaves[leaf.base + index * size] = leaf.order - 1
        return outcome

    def _prune(self, step: Prune) -> None:
        self.tables[step.table % len(self.tables)].prune()
        self.mmu.flush_all()

    def _flush(self, step: Flush) -> None:
        asid = self._asid(step.space % len(self.spaces))
        if step.what == "range":
            self.mmu.flush_range(asid, step.address, step.length)
        elif step.what == "asid":
            self.mmu.flush_asid(asid)
        else:
            getattr(self.mmu, "flush_" + step.what)()

    def _pick(self, number: int, leaf: int) -> tuple[int, int]:
        found = sorted(self._leaves[number].items())
        return found[leaf % len(found)]

    @staticmethod
    def _asid(number: int) -> int:
        return number + 1

    def _wrapped(self, number: int, address: int) -> int:
        """The address, within the reach of the table's root."""
        return address % (1 << (12 + 9 * self._levels[number]))
