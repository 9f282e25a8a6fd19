"""Whoever flushes as docs/translation.md says is never given an address of the past.

Any sequence of changes to the tables of two guests, each followed by the flush that it
demands; after each, every address translates to what the tables map now, or faults where
an MMU without caches faults, and what the walk loads is where that MMU loads it. The twin
and the core each have to hold to it. Without the flush they do not.
"""

from __future__ import annotations

from itertools import chain, product
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simvm import _core, reference
from simvm.hardware.geometry import MmuGeometry, NestedTlb, TableFormat, TlbArray, WalkCachePart

PARTS = tuple(WalkCachePart(level, 8, 4) for level in (2, 3, 4))
LARGE_TLB = (TlbArray((0, 1, 2, 3, 4, 5, 6), 64, 8),)
SMALL_TLB = (TlbArray((0, 1, 2, 3, 4, 5, 6), 4, 4, "fifo"),)
SMASHED_TLB = (TlbArray((0, 1, 3), 32, 8, "plru"),)
NESTED_TLB = NestedTlb(16, 4, "random")
GEOMETRIES = [
    MmuGeometry(
        style=style,
        l1_load=l1,
        l2=l2,
        smash=True,
        guest_walk_cache=parts,
        host_walk_cache=parts,
        nested_tlb=nested_tlb,
    )
    for style in ("intel", "amd")
    for l1, l2 in ((LARGE_TLB, ()), (SMALL_TLB, LARGE_TLB), (SMALL_TLB, SMASHED_TLB), ((), ()))
    for parts, nested_tlb in ((PARTS, NESTED_TLB), ((), NESTED_TLB), (PARTS, NestedTlb()))
]
TLB_ALONE = MmuGeometry(l1_load=LARGE_TLB)
PLAIN, GROUPED = TableFormat(), TableFormat(contiguous=True)
FORMATS = [
    (PLAIN, PLAIN),
    (GROUPED, GROUPED),
    (GROUPED, PLAIN),
    (TableFormat(3, 16), PLAIN),
    (PLAIN, TableFormat(3, 14, root_bits=12)),
    (TableFormat(3), TableFormat(4, root_bits=11)),
]
VPIDS = (0, 5)
DATA = 4 << 30  # gPA of a guest's data
TABLES = 4 << 20  # gPA below which guests have their tables
FRAMES = 1 << 36  # hPA of everything that is not a table
PAGES = 20  # of a guest's smallest leaves; two of the larger

implementations = pytest.mark.parametrize("core", [reference, _core], ids=["twin", "core"])


class Change(NamedTuple):
    """`what` happens at site `site` of a guest's table, or of its SLAT; how it is flushed."""

    guest: int
    in_host: bool
    what: str
    site: int
    by_range: bool


# What is done in turn at one site: a collapse mostly needs a split before it.
TURNS = [
    ("split", "collapse"),
    ("split", "move", "collapse", "move"),
    ("split", "split"),
    ("collapse",),
    ("move",),
    ("unmap",),
    ("unmap", "restore"),
]
CHANGES = st.builds(
    lambda turns, **where: [Change(what=what, **where) for what in turns],
    turns=st.sampled_from(TURNS),
    guest=st.sampled_from([0, 0, 0, 1]),
    in_host=st.booleans(),
    site=st.integers(0, 8),
    by_range=st.booleans(),
)


def leaf_bytes(form: TableFormat, order: int) -> int:
    return 1 << (form.granule_shift + (form.granule_shift - 3) * order)


def region(order: int) -> int:
    """Where leaves of that order begin, in a guest's VA; and in gPA, `DATA` higher."""
    return order << 35


class Guest:
    """A guest whose tables and data are mapped, all in the host to frames of their own."""

    def __init__(self, core: Any, forms: tuple[TableFormat, TableFormat], number: int) -> None:
        self.form, self.host_form = forms
        self.host = make_table(core, self.host_form, (1 + number) << 30)
        self.guest = make_table(core, self.form, 0)
        self.vpid = VPIDS[number]
        self.space = core.AddressSpace(1, self.host, self.guest, vpid=self.vpid)
        self._frame = FRAMES + (number << 42)
        self.orders = [o for o in (0, 1, 2) if o == 0 or leaf_bytes(self.form, o) <= 1 << 30]
        if self.form.levels < 4:
            self.orders = self.orders[:2]
        self.back(0, TABLES, 1)
        self.sites: dict[bool, list[int]] = {True: [], False: []}  # in the host's table or not
        self.vas = []
        for order in self.orders:
            size, leaves = leaf_bytes(self.form, order), 2 if order else PAGES
            for leaf in range(leaves):
                va = region(order) + leaf * size
                self.guest.map(va, DATA + va, order)
            self.back(DATA + region(order), leaves * size, order)
            far = size + 5 if order else 14 * size
            self.sites[False] += [region(order), region(order) + far]
            self.sites[True] += [DATA + region(order), DATA + region(order) + far]
            steps = [0, size // 2 + 5, size, 2 * size - 1, 14 * size, 17 * size]
            self.vas += [region(order) + step for step in steps if step < leaves * size]
        self.sites[True] += [0, 3 * 4096, TABLES // 2]

    def back(self, gpa: int, length: int, order: int) -> None:
        """Map a range in the host, with leaves of that order or of the largest that fits."""
        while order and leaf_bytes(self.host_form, order) > max(length, TABLES):
            order -= 1
        size = leaf_bytes(self.host_form, order)
        start = self.frames(length, size)
        for offset in range(0, length, size):
            self.host.map(gpa + offset, start + offset, order)

    def frames(self, length: int, size: int) -> int:
        """Memory that nothing was mapped to before."""
        start = -(-self._frame // size) * size
        self._frame = start + length
        return start

    def truth(self, va: int) -> int | None:
        """The hPA that the tables map now."""
        leaf = self.guest.lookup(va)
        if leaf is None:
            return None
        gpa = leaf.target + va - leaf.base
        backing = self.host.lookup(gpa)
        return None if backing is None else int(backing.target + gpa - backing.base)


def make_table(core: Any, form: TableFormat, base: int) -> Any:
    is_twin = core is reference
    memory = reference.BumpAllocator(base) if is_twin else _core.BlockAllocator(1 << 30, base)
    return core.PageTable(
        form.levels,
        memory,
        granule_shift=form.granule_shift,
        root_bits=form.root_bits,
        contiguous=form.contiguous,
    )


class World:
    """One MMU on which two guests run by turns."""

    def __init__(
        self, core: Any, geometry: MmuGeometry, forms: tuple[TableFormat, TableFormat]
    ) -> None:
        self.core = core
        is_twin = core is reference
        self.mmu = core.Mmu(geometry) if is_twin else core.Mmu(geometry, targets=True)
        self.bare = core.Mmu(MmuGeometry.bare())
        self.guests = [Guest(core, forms, number) for number in (0, 1)]
        self.gone: list[tuple[Any, int, int, int]] = []  # leaves that were unmapped

    def check(self) -> None:
        """Every address is answered as the tables are now, and from where they lie now."""
        for guest in self.guests:
            for va in guest.vas:
                (code, address), loads = self._walk(self.mmu.translate, guest.space, va)
                if code == self.core.OK:
                    assert address == guest.truth(va), f"stale: {va:#x} of vpid {guest.vpid}"
                if loads or code != self.core.OK:
                    (bare_code, _), true_loads = self._walk(self.bare.access, guest.space, va)
                    assert code == self.core.OK or bare_code != self.core.OK
                    # Caches may know the way past a table that has no backing any more.
                    if bare_code == self.core.OK:
                        assert loads <= true_loads, f"stale: a table for {va:#x}"

    def _walk(self, how: Any, space: Any, va: int) -> tuple[tuple[int, int], set[int]]:
        """What an MMU answers by that method, and the hPA that it loaded."""
        mmu = how.__self__
        if self.core is reference:
            mmu.trace = []
            return how(space, va), set(mmu.trace)
        mmu.record_loads()
        return how(space, va), set(mmu.recorded_loads())

    def change(self, change: Change, flush: bool = True) -> None:
        """Make a change, if it can be made there, and flush what it demands."""
        guest = self.guests[change.guest]
        sites = guest.sites[change.in_host]
        touched = self._apply(guest, change, sites[change.site % len(sites)])
        if touched is None or not flush:
            return
        if change.in_host and change.by_range:
            self.mmu.flush_gpa(*touched, vpid=guest.vpid)
        elif change.in_host:
            self.mmu.flush_guest(guest.vpid)
        elif change.by_range:
            self.mmu.flush_range(1, *touched, vpid=guest.vpid)
        else:
            self.mmu.flush_asid(1, guest.vpid)

    def _apply(self, guest: Guest, change: Change, address: int) -> tuple[int, int] | None:
        """What may have been cached of what was changed: a start and a length."""
        table = guest.host if change.in_host else guest.guest
        form = guest.host_form if change.in_host else guest.form
        if change.what == "restore":
            while self.gone:
                owner, base, target, order = self.gone.pop()
                owner.map(base, target, order)
            return None  # what was not there is not cached
        leaf = table.lookup(address)
        if leaf is None:
            return None
        size = leaf_bytes(form, leaf.order)
        if change.what == "unmap":
            self.gone.append((table, leaf.base, *table.unmap(address)))
        elif change.what == "move":
            table.unmap(address)
            table.map(leaf.base, self._elsewhere(guest, change, leaf.target, size), leaf.order)
        elif change.what == "split":
            if leaf.order == 0:
                return None
            table.split(address)
        else:
            size = leaf_bytes(form, leaf.order + 1)
            try:
                table.collapse(address, self._elsewhere(guest, change, leaf.target, size))
            except ValueError:
                return None
        return leaf.base & -size, size

    def _elsewhere(self, guest: Guest, change: Change, target: int, size: int) -> int:
        """A fresh frame in the host. In a guest the next such page, which may have no backing."""
        return guest.frames(size, size) if change.in_host else (target & -size) + size


@implementations
@given(
    geometry=st.sampled_from(GEOMETRIES),
    forms=st.sampled_from(FORMATS),
    changes=st.lists(CHANGES, min_size=4, max_size=16),
)
def test_no_translation_is_stale(
    core: ModuleType,
    geometry: MmuGeometry,
    forms: tuple[TableFormat, TableFormat],
    changes: list[list[Change]],
) -> None:
    world = World(core, geometry, forms)
    world.check()
    for change in chain.from_iterable(changes):
        world.change(change)
        world.check()


def data_site(world: World, change: Change, order: int) -> Change:
    """The same at the first byte of the data that is mapped with that order."""
    start = DATA if change.in_host else 0
    return change._replace(site=world.guests[0].sites[change.in_host].index(start + region(order)))


@implementations
@pytest.mark.parametrize(
    ("in_host", "what", "by_range"),
    list(product((True, False), ("unmap", "move", "collapse", "of a group"), (True, False))),
)
def test_without_its_flush_a_change_leaves_stale_translations(
    core: ModuleType, in_host: bool, what: str, by_range: bool
) -> None:
    """TLBs are enough to see it. A collapse copies to a new place, after a split that does not;
    a page of a group, here the fifteenth, is in the entry of all sixteen."""
    for flush in (False, True):
        world = World(core, TLB_ALONE, (GROUPED, GROUPED) if what == "of a group" else (PLAIN,) * 2)
        change = Change(0, in_host, what, 0, by_range)
        if what == "collapse":
            change = data_site(world, change, 1)
            world.change(change._replace(what="split"))
        elif what == "of a group":
            change = data_site(world, change._replace(what="move"), 0)
            change = change._replace(site=change.site + 1)
        else:
            change = data_site(world, change, 0)
        world.check()
        world.change(change, flush)
        if flush:
            world.check()
        else:
            with pytest.raises(AssertionError, match="stale"):
                world.check()


@implementations
@pytest.mark.parametrize("by_range", [True, False])
@pytest.mark.parametrize(
    "geometry",
    [
        MmuGeometry(style="intel", nested_tlb=NESTED_TLB),
        MmuGeometry(style="amd", nested_tlb=NESTED_TLB),
        MmuGeometry(style="intel", guest_walk_cache=PARTS),
    ],
    ids=["intel nested TLB", "amd nested TLB", "combined entries"],
)
def test_without_its_flush_a_guests_tables_are_read_where_they_were(
    core: ModuleType, geometry: MmuGeometry, by_range: bool
) -> None:
    for flush in (False, True):
        world = World(core, geometry, (PLAIN, PLAIN))
        world.check()
        tables = world.guests[0].sites[True].index(0)
        world.change(Change(0, True, "move", tables, by_range), flush)
        if flush:
            world.check()
        else:
            with pytest.raises(AssertionError, match="stale: a table"):
                world.check()


@pytest.mark.parametrize("style", ["intel", "amd"])
def test_without_its_flush_a_collapse_leaves_a_walk_cache_stale(style: str) -> None:
    """No TLB, but the host walk cache knows a table that has been given back. (Such a table is
    memory no longer in the core, so that it is asked only with the flush, above.)"""
    world = World(reference, MmuGeometry(style=style, host_walk_cache=PARTS), (PLAIN, PLAIN))
    change = Change(0, True, "split", 0, True)
    world.change(data_site(world, change, 1))
    world.check()
    world.change(data_site(world, change._replace(what="collapse"), 1), flush=False)
    with pytest.raises(AssertionError, match="stale"):
        world.check()
