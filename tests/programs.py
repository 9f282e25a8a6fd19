"""Programs by Hypothesis, for the two implementations of the MMU to be compared on.

A `Program` is plain data; `machines.Machine` carries one out. Programs keep to the rules
of `docs/translation.md`: whoever changes a table flushes what may have cached it. Only
the unmapping of a guest (or native) leaf is sometimes left unflushed, so that stale TLB
entries answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, product
from typing import NamedTuple

from hypothesis import strategies as st

from simvm.hardware.geometry import (
    POLICIES,
    DataCache,
    MmuGeometry,
    NestedTlb,
    TableFormat,
    TlbArray,
    WalkCachePart,
)

MOST_FAULTS_OF_AN_ACCESS = 64

# --- Formats


def reach_bits(form: TableFormat) -> int:
    """log2 of what a table of the format maps."""
    bits = form.granule_shift - 3
    return form.granule_shift + bits * (form.levels - 1) + (form.root_bits or bits)


FORMATS = [
    TableFormat(levels, granule, root, contiguous)
    for granule, roots in ((12, (0, 2, 10, 11, 13)), (14, (0, 1, 12, 15)), (16, (0, 2, 6, 17)))
    for levels, root, contiguous in product((2, 3, 4, 5), roots, (False, True))
    if granule == 12 or not contiguous
]
FORMATS = [form for form in FORMATS if reach_bits(form) <= 57]
USUAL = [TableFormat(levels, contiguous=c) for levels in (4, 5) for c in (False, True)]
ANY_FORMAT = st.sampled_from(USUAL) | st.sampled_from(FORMATS)
# A SLAT reaches all that guests map: their tables (1 GiB) and data.
SLAT_FORMATS = [form for form in FORMATS if reach_bits(form) >= 30]
SLAT_FORMAT = st.sampled_from(USUAL) | st.sampled_from(SLAT_FORMATS)

# --- Geometries

POLICY = st.sampled_from(POLICIES)
TLB_LAYOUTS = [
    (),
    ((0,),),
    ((0,), (1,), (2,)),
    ((0, 1), (2,)),
    ((0, 1, 2),),
    ((0, 1), (0, 1)),
    ((0, 1), (1, 2)),
    ((0,), (0,), (1, 2)),
    ((0, 1, 2), (0, 1, 2)),
    ((0, 3), (1,)),
    ((0, 1, 3), (0, 1, 3)),
    ((0,), (3,), (1, 2)),
    ((0, 3), (1, 2)),
    ((0, 1, 2, 3, 4, 5, 6),),
    ((0, 4), (0, 4), (1, 5, 6)),
    ((6, 3, 0), (5, 4), (1, 2)),
]


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
    layout = draw(st.sampled_from(TLB_LAYOUTS))
    orders = [order for held in layout for order in held]
    interleaved = len(orders) > len(set(orders))
    common = draw(shapes())
    arrays = []
    for held in layout:
        entries, ways = common if interleaved else draw(shapes())
        if draw(st.integers(0, 9)) == 0:
            entries = 0
        arrays.append(TlbArray(held, entries, ways, draw(POLICY)))
    return tuple(arrays)


@st.composite
def walk_caches(draw: st.DrawFn) -> tuple[WalkCachePart, ...]:
    levels = sorted(draw(st.sets(st.integers(2, 5))))
    parts = []
    for level in levels:
        entries, ways = draw(shapes(2))
        if draw(st.integers(0, 9)) == 0:
            entries = 0
        parts.append(WalkCachePart(level, entries, ways, draw(POLICY)))
    return tuple(parts)


@st.composite
def nested_tlbs(draw: st.DrawFn) -> NestedTlb:
    if draw(st.booleans()):
        return NestedTlb()
    entries, ways = draw(shapes())
    return NestedTlb(entries, ways, draw(POLICY))


@st.composite
def data_caches(draw: st.DrawFn) -> DataCache:
    """Absent, or 1 to 8 KiB."""
    if draw(st.integers(0, 2)) == 0:
        return DataCache()
    size = draw(st.sampled_from([1024, 2048, 3072, 4096, 8192]))
    return DataCache(size, draw(st.sampled_from([1, 2, 4, 8, 16])), draw(st.integers(0, 60)))


SMASHED = st.builds(
    lambda shape, policy: (TlbArray((0, 1, 3), *shape, policy),), shape=shapes(), policy=POLICY
)
GEOMETRIES = st.builds(
    MmuGeometry,
    style=st.sampled_from(["intel", "amd"]),
    l1_load=tlbs(),
    l1_store=st.none() | tlbs(),
    l2=tlbs() | SMASHED,
    l2_penalty=st.integers(0, 20),
    smash=st.booleans(),
    walkers=st.integers(1, 3),
    guest_walk_cache=walk_caches(),
    host_walk_cache=walk_caches(),
    nested_tlb=nested_tlbs(),
    walk_cache_latency=st.integers(0, 5),
    cache_l2=data_caches(),
    cache_llc=data_caches(),
    dram_latency=st.integers(61, 300),
)


# --- Steps

# Table indices that make neighbours, and that reach over the ends of every table.
REGIONS: tuple[int, ...] = (0, 1, 2, 511, 512, 1023, (1 << 18) - 1)
PIECES = (0, 1, 2, 3, 511)
PAGES = (*range(12), 16, 510, 511)
ADDRESS = st.builds(
    lambda region, piece, page, byte: (region << 30) + (piece << 21) + (page << 12) + byte,
    region=st.sampled_from(REGIONS),
    piece=st.sampled_from(PIECES),
    page=st.sampled_from(PAGES),
    byte=st.sampled_from([0, 64, 4095]),
)
"""Any byte of a few regions that lie close and far apart."""
ORDER = st.sampled_from([0, 0, 0, 1, 1, 2])
FRAME = st.sampled_from([0, 0, *range(16)])  # pages in a row from 0 on are contiguous
TABLE = st.integers(0, 4)


class Demand(NamedTuple):
    """How faults of a step are served: the orders to map in the guest and in the host.

    Data begins at frame `frame` of the order, in the guest at `guest_frame` if there is
    one; `rounds` of 0 leave the fault as it is.
    """

    rounds: int
    guest_order: int
    host_order: int
    frame: int
    guest_frame: int | None = None


class Access(NamedTuple):
    """`length` accesses from `address` on, `stride` bytes apart; a bit of `writes` each.

    After `period` of them they start over, and find again what still is in the TLBs. With
    `leaf` the address is taken as an offset in a mapped leaf, if there is one. `pace` is
    the cycles from one to the next; without it there is no clock, and with `translate`
    the hPA are asked for instead.
    """

    space: int
    address: int
    leaf: int | None
    stride: int
    length: int
    period: int
    writes: int
    demand: Demand
    pace: int | None = None
    translate: bool = False


class Visit(NamedTuple):
    """Accesses to those addresses; all else is as in `Access`."""

    space: int
    addresses: tuple[int, ...]
    writes: int
    demand: Demand
    pace: int | None
    translate: bool


class Map(NamedTuple):
    """Map `leaves` in a row in table `table` from `address` on, aligned down unless `askew`."""

    table: int
    address: int
    frame: int
    order: int
    askew: bool
    leaves: int = 1


class Change(NamedTuple):
    """Unmap, split, collapse (to `frame`), or clear A of, the leaf `leaf` of table `table`;
    then flush by `flush`."""

    what: str
    table: int
    leaf: int
    frame: int
    flush: str


class Absent(NamedTuple):
    """The same at an address that may not be mapped; then flush all."""

    what: str
    table: int
    address: int
    frame: int


class Prune(NamedTuple):
    table: int


class Flush(NamedTuple):
    what: str
    space: int
    address: int
    length: int


Step = Access | Visit | Map | Change | Absent | Prune | Flush

DEMANDS = st.builds(
    lambda rounds, orders, frame: Demand(rounds, *orders, frame),
    rounds=st.sampled_from([0, 2, MOST_FAULTS_OF_AN_ACCESS, MOST_FAULTS_OF_AN_ACCESS]),
    orders=st.sampled_from([(0, 0), (2, 2)]) | st.tuples(ORDER, ORDER),
    frame=FRAME,
)
ACCESSES = st.builds(
    Access,
    space=st.integers(0, 2),
    address=ADDRESS,
    leaf=st.none() | st.integers(0, 30),
    stride=st.sampled_from([0, 64, 4096, 4096, 8192, 5 << 12, 1 << 16, 1 << 21, 1 << 30]),
    length=st.integers(1, 40),
    period=st.integers(1, 20),
    writes=st.integers(0, (1 << 40) - 1),
    demand=DEMANDS,
    pace=st.sampled_from([None, 0, 1, 100, 2000]),
    translate=st.booleans(),
)
MAPS = st.builds(
    Map,
    table=TABLE,
    address=ADDRESS,
    frame=FRAME,
    order=ORDER,
    askew=st.integers(0, 9).map(lambda n: n == 0),
    leaves=st.sampled_from([1, 1, 16]),
)
CHANGES = st.builds(
    Change,
    what=st.sampled_from(
        ["unmap", "unmap", "split", "split", "collapse", "collapse", "clear_accessed"]
    ),
    table=TABLE,
    leaf=st.integers(0, 30),
    frame=FRAME,
    flush=st.sampled_from(["none", "range", "asid", "all", "guest", "gpa", "gpa"]),
)
ABSENTEES = st.builds(
    Absent,
    what=st.sampled_from(["unmap", "split", "collapse", "clear_accessed"]),
    table=TABLE,
    address=ADDRESS,
    frame=FRAME,
)


@st.composite
def round_trips(draw: st.DrawFn) -> tuple[Step, ...]:
    """A leaf is split, what it became is accessed and perhaps changed, and it is collapsed.

    A table seldom is full of leaves otherwise. After the split the first of the small leaves
    has the number that the large one had.
    """
    table, leaf = draw(st.integers(0, 2)), draw(st.integers(0, 3))
    split, collapse = (draw(CHANGES)._replace(table=table, leaf=leaf) for _ in range(2))
    between = draw(ACCESSES)._replace(space=table, leaf=leaf)
    meanwhile = draw(st.lists(CHANGES, max_size=1))
    return split._replace(what="split"), between, *meanwhile, collapse._replace(what="collapse")


FLUSHES = st.builds(
    Flush,
    what=st.sampled_from(["all", "guest", "asid", "range", "gpa"]),
    space=st.integers(0, 2),
    address=ADDRESS,
    length=st.sampled_from([0, 1, 4096, 3 << 12, 1 << 21, 1 << 30, 1 << 40]),
)
# Accesses are most of a program, or nothing would be cached to be wrong about.
ONE_STEP = st.one_of(
    ACCESSES,
    ACCESSES,
    ACCESSES,
    ACCESSES,
    MAPS,
    CHANGES,
    CHANGES,
    FLUSHES,
    ABSENTEES,
    st.builds(Prune, table=TABLE),
)
STEPS = st.integers(0, 9).flatmap(lambda n: round_trips() if n == 0 else st.tuples(ONE_STEP))
"""Steps that belong together; most often one."""


@dataclass(frozen=True)
class Program:
    """An MMU, the formats of tables, and the steps.

    Each of `slats` is a VM's; each of `guests` is the format of a guest's table and the
    number of its VM. Without guests, each of `native` is a space of its own. Without
    `targets` the MMU does not keep addresses, and nothing asks for them.
    """

    geometry: MmuGeometry
    slats: tuple[TableFormat, ...]
    guests: tuple[tuple[TableFormat, int], ...]
    native: tuple[TableFormat, ...]
    steps: tuple[Step, ...]
    targets: bool = True


@st.composite
def programs(draw: st.DrawFn) -> Program:
    slats, guests, native = [], [], []
    if draw(st.integers(0, 3)) > 0:
        slats = draw(st.lists(SLAT_FORMAT, min_size=1, max_size=2))
        numbers = st.integers(0, len(slats) - 1)
        guests = draw(st.lists(st.tuples(ANY_FORMAT, numbers), min_size=1, max_size=3))
    else:
        native = draw(st.lists(ANY_FORMAT, min_size=1, max_size=3))
    return Program(
        geometry=draw(GEOMETRIES),
        slats=tuple(slats),
        guests=tuple(guests),
        native=tuple(native),
        steps=tuple(chain.from_iterable(draw(st.lists(STEPS, min_size=15, max_size=60)))),
        targets=draw(st.integers(0, 3)) > 0,
    )
