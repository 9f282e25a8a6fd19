"""Programs from a seed that are long enough for every structure of a real CPU to evict.

Those of Hypothesis (`programs.py`) are short, so that they shrink; they suit structures
of a few entries. These touch thousands of pages, of which they meet many again, and
between accesses they do what a hypervisor does to tables and TLBs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from math import lcm
from typing import Any

import numpy as np
from programs import Absent, Change, Demand, Flush, Map, Program, Prune, Step, Visit, reach_bits

from simvm.hardware import Cpu
from simvm.hardware.geometry import (
    PAGE,
    POLICIES,
    DataCache,
    MmuGeometry,
    NestedTlb,
    TableFormat,
    TlbArray,
    WalkCachePart,
)
from simvm.hardware.load import LINE_BYTES

SMALL = MmuGeometry(
    l1_load=(TlbArray((0, 3, 4), 18, 6), TlbArray((1, 5, 6), 16, 4), TlbArray((2,), 4, 4)),
    l1_store=(TlbArray((0, 1, 2, 3, 4, 5, 6), 10, 5),),
    l2=(TlbArray((0, 1, 3), 64, 8), TlbArray((0, 3, 4, 5, 6), 64, 8)),
    l2_penalty=7,
    smash=True,
    walkers=3,
    guest_walk_cache=tuple(WalkCachePart(level, 9, 3) for level in (2, 3, 4, 5)),
    host_walk_cache=tuple(WalkCachePart(level, 6, 3) for level in (2, 3, 4, 5)),
    nested_tlb=NestedTlb(12, 6),
    cache_l2=DataCache(3 * 1024, 16, 14),
    cache_llc=DataCache(24 * 1024, 8, 54),
)
"""Entries of every size, in structures that a few pages fill."""
FLUSHES = ("range", "asid", "gpa", "guest", "all")
EVENTS = (
    *[("flush", "range")] * 6,
    *[("flush", "asid")] * 4,
    *[("flush", "gpa")] * 6,
    *[("flush", "guest")] * 2,
    ("flush", "all"),
    *[("clear_accessed", "")] * 4,
    *[("unmap", "")] * 6,
    *[("split", "")] * 4,
    *[("collapse", "")] * 5,
    ("absent", ""),
    ("prune", ""),
)
"""What happens between accesses. Changes are flushed in any way."""
LENGTHS = (0, 1, PAGE, 3 * PAGE, 1 << 21, 1 << 30, 1 << 40)
AN_ACCESSES = 48  # of one step
WINDOWS = 24  # of gPA, for each pair of orders


@dataclass(frozen=True)
class Size:
    """How much a program does: the pages of each order that a space has, how often they are
    accessed before anything else happens, and how often everything else happens."""

    pages: tuple[int, int, int]
    accesses: int
    rounds: int


class Writer:
    """Writes one program. Nothing that gives back tables, with `keeps_tables`."""

    def __init__(
        self,
        geometry: MmuGeometry,
        slats: tuple[TableFormat, ...],
        spaces: tuple[tuple[TableFormat, int], ...],
        size: Size,
        seed: int,
        keeps_tables: bool,
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._geometry, self._size, self._keeps_tables = geometry, size, keeps_tables
        self._slats, self._spaces = slats, spaces
        self._sets = [
            cache.bytes // LINE_BYTES // cache.ways
            for cache in (geometry.cache_l2, geometry.cache_llc)
        ]
        self._pages = [
            [self._addresses(form, order, count) for order, count in enumerate(size.pages)]
            for form, _ in spaces
        ]
        self._windows = [self._gpa_windows(form) for form in slats]
        self._steps: list[Step] = []

    def program(self) -> Program:
        if any(form.contiguous for form in (*self._slats, *(form for form, _ in self._spaces))):
            self._groups()
        self._first_visits()
        for _ in range(self._size.accesses // AN_ACCESSES):
            self._steps.append(self._again())
        for _ in range(self._size.rounds):
            for event in self._rng.permutation(len(EVENTS)):
                self._steps.append(self._again())
                self._event(*EVENTS[event])
        natives = tuple(form for form, _ in self._spaces)
        return Program(
            self._geometry,
            slats=self._slats,
            guests=self._spaces if self._slats else (),
            native=() if self._slats else natives,
            steps=tuple(self._steps),
        )

    # --- Where things lie

    def _addresses(
        self, form: TableFormat, order: int, count: int, part: int | None = None
    ) -> list[int]:
        """Distinct pages of that order: many share tables and sets, some lie far apart.

        They keep to part 0, 1 or 2 of the address space, by the index in the root: by
        default that of the order's number.
        """
        rng, bits = self._rng, form.granule_shift - 3
        base = np.zeros(2 * count, np.uint64)
        for level in range(order + 1, form.levels + 1):
            entries = 1 << bits
            if level == form.levels:
                entries = max(1 << (form.root_bits or bits), 4) // 4
            index = rng.integers(0, entries, 2 * count)
            near = rng.random(2 * count)
            if level == order + 1:
                index = np.where(near < 0.3, index % 8, index)
            else:
                index = np.where(near < 0.92, index % 12, index)
                index = np.where(near < 0.6, 0, index)
            if level == form.levels:
                index = 4 * index + (order if part is None else part)
            shift = form.granule_shift + bits * (level - 1)
            base += index.astype(np.uint64) << np.uint64(shift)
        distinct = list(dict.fromkeys(base.tolist()))
        return [int(address) for address in distinct[:count]]

    def _gpa_windows(self, form: TableFormat) -> dict[tuple[int, int], list[int]]:
        """By the orders of guest and host, where in gPA data lies."""
        pairs = [(guest, host) for guest in range(3) for host in range(3)]
        return {(guest, host): self._addresses(form, 1, WINDOWS, host) for guest, host in pairs}

    def _frame(self, order: int) -> int:
        """The host's frames, such that lines of many of them share sets of the data caches."""
        turn = self._pick(64)
        if order:  # not as far as data caches of a few sets cannot tell apart
            return turn * 16 if order == 1 else turn
        sets = self._sets[self._rng.random() < 0.75] or 1
        return turn * lcm(sets * LINE_BYTES, PAGE) // PAGE

    def _pick(self, number: int) -> int:
        return int(self._rng.integers(0, number))

    def _space(self) -> int:
        return self._pick(len(self._spaces))

    def _table(self) -> int:
        return self._pick(len(self._spaces) + len(self._slats))

    # --- Accesses

    def _demand(self, space: int, order: int) -> Demand:
        host = order if self._rng.random() < 0.75 else self._pick(3)
        if not self._slats:
            return Demand(64, order, order, self._frame(order))
        vm = self._spaces[space][1]
        windows = self._windows[vm][order, host]
        form = self._spaces[space][0]
        size = form.granule_shift + (form.granule_shift - 3) * order
        gpa = windows[self._pick(len(windows))]
        return Demand(64, order, host, self._frame(host), guest_frame=gpa >> size)

    def _visit(self, space: int, order: int, pages: list[int]) -> Visit:
        rng, form = self._rng, self._spaces[space][0]
        size = 1 << (form.granule_shift + (form.granule_shift - 3) * order)
        offsets = rng.choice([0, 0, 0, 8, LINE_BYTES, size - 1], len(pages))
        offsets = np.where(rng.random(len(pages)) < 0.2, rng.integers(0, size, len(pages)), offsets)
        writes = int("".join("1" if write else "0" for write in rng.random(len(pages)) < 0.25), 2)
        pace = [None, 0, 1, 100, 2000][self._pick(5)]
        addresses = tuple(page + int(offset) for page, offset in zip(pages, offsets, strict=True))
        demand = self._demand(space, order)
        return Visit(space, addresses, writes, demand, pace, translate=rng.random() < 0.5)

    def _first_visits(self) -> None:
        """Every page once, by turns of spaces and orders."""
        visits = [
            (space, order, pages[start : start + AN_ACCESSES])
            for space, of_order in enumerate(self._pages)
            for order, pages in enumerate(of_order)
            for start in range(0, len(pages), AN_ACCESSES)
        ]
        for turn in self._rng.permutation(len(visits)):
            self._steps.append(self._visit(*visits[turn]))

    def _again(self) -> Visit:
        """Pages met before: any of a space and an order, or the few that are met often."""
        space = self._space()
        orders = [order for order in range(3) if self._pages[space][order]]
        order = orders[min(self._pick(2 * len(orders)) // 2, self._pick(len(orders)))]
        return self._visit(space, order, self._some(space, order, AN_ACCESSES))

    def _some(self, space: int, order: int, count: int) -> list[int]:
        pages = self._pages[space][order]
        among = len(pages) if self._rng.random() < 0.5 else max(1, len(pages) // 16)
        return [pages[self._pick(among)] for _ in range(count)]

    def _groups(self) -> None:
        """Pages in a row in guest and host: of sixteen, and of fifteen, which are no group."""
        for number in range(24):
            space = number % len(self._spaces)
            address = self._pages[space][0][number] & -(16 * PAGE)
            leaves = 16 - number // 3 % 2
            if not self._slats:
                frame = 16 * (number + 1)
                self._steps.append(Map(space, address, frame, 0, askew=True, leaves=leaves))
            else:
                slat = len(self._spaces) + self._spaces[space][1]
                gpa = (1 << 29) + number * 16 * PAGE
                guest = Map(space, address, gpa // PAGE, 0, askew=True, leaves=leaves)
                host = Map(slat, gpa, 16 * (number + 1), 0, askew=True, leaves=16)
                self._steps += [guest, host]
            self._pages[space][0] += [address + page * PAGE for page in range(leaves)]

    # --- What happens between accesses

    def _event(self, kind: str, how: str) -> None:
        rng, table = self._rng, self._table()
        if kind != "flush":
            how = str(rng.choice(FLUSHES, p=[0.35, 0.2, 0.35, 0.07, 0.03]))
        if self._keeps_tables and kind in ("collapse", "prune"):
            kind, how = "flush", "range"
        if kind == "flush":
            self._flush(how)
        elif kind == "absent":
            what = str(rng.choice(["unmap", "split", "clear_accessed"]))
            self._steps.append(Absent(what, table, self._pick(1 << 44), 0))
        elif kind == "prune":
            self._steps.append(Prune(table))
        elif kind == "collapse":
            leaf = self._large_leaf()
            looks = self._again()
            self._steps += [
                Change("split", table, leaf, 0, how),
                looks._replace(demand=looks.demand._replace(rounds=0)),
                Change("collapse", table, leaf, self._pick(16), how),
            ]
        else:
            leaf = self._large_leaf() if kind == "split" else self._pick(1 << 20)
            self._steps.append(Change(kind, table, leaf, self._pick(16), how))

    def _large_leaf(self) -> int:
        """The number of a leaf from the end: there large ones are."""
        return -1 - self._pick(80)

    def _flush(self, what: str) -> None:
        """Pages are looked at before and after, most often of the order that is flushed."""
        space = self._space()
        orders = [order for order in range(3) if self._pages[space][order]]
        order = orders[self._pick(len(orders))]
        bits = self._spaces[space][0].granule_shift - 3
        looked_at = self._some(space, order, AN_ACCESSES)
        address = looked_at[0] + PAGE * self._pick(1 << bits * order)
        if what == "gpa" and self._slats:
            windows = list(self._windows[self._spaces[space][1]].values())
            among = windows[self._pick(len(windows))]
            address = among[self._pick(len(among))] + PAGE * self._pick(64)
            if self._rng.random() < 0.3:  # a guest's tables
                address = PAGE * self._pick(256)
        visit = self._visit(space, order, looked_at)
        flush = Flush(what, space, address, LENGTHS[self._pick(len(LENGTHS))])
        self._steps += [visit, flush, visit]


def long_program(
    geometry: MmuGeometry,
    slats: tuple[TableFormat, ...],
    spaces: tuple[tuple[TableFormat, int], ...],
    size: Size,
    seed: int = 0,
    keeps_tables: bool = False,
) -> Program:
    """`spaces` are formats and the numbers of VMs; native ones where there are no `slats`."""
    assert all(reach_bits(form) >= 30 for form in slats)
    return Writer(geometry, slats, spaces, size, seed, keeps_tables).program()


def of_cpu(
    cpu: Cpu, nested: bool, size: Size, seed: int = 0, keeps_tables: bool = False
) -> Program:
    """Two spaces of the CPU's own formats, and one of tables of 5 levels, in a VM of its own."""
    own = cpu.guest_format(contiguous=cpu.contiguous)
    slats = (cpu.host_format(contiguous=cpu.contiguous), cpu.host_format(5)) if nested else ()
    spaces = ((own, 0), (cpu.guest_format(5), 1), (own, 0))
    return long_program(cpu.geometry, slats, spaces, size, seed, keeps_tables)


def with_policies(turn: int, geometry: MmuGeometry = SMALL) -> MmuGeometry:
    """The geometry with all the policies by turns, so that in four turns each is everywhere;
    but tree-PLRU is not for more than 64 ways."""
    policies = itertools.cycle(POLICIES[turn % len(POLICIES) :] + POLICIES[: turn % len(POLICIES)])

    def all_of(parts: tuple[Any, ...]) -> tuple[Any, ...]:
        chosen = [(part, next(policies)) for part in parts]
        return tuple(
            replace(part, policy="lru" if policy == "plru" and part.ways > 64 else policy)
            for part, policy in chosen
        )

    return replace(
        geometry,
        l1_load=all_of(geometry.l1_load),
        l1_store=None if geometry.l1_store is None else all_of(geometry.l1_store),
        l2=all_of(geometry.l2),
        guest_walk_cache=all_of(geometry.guest_walk_cache),
        host_walk_cache=all_of(geometry.host_walk_cache),
        nested_tlb=all_of((geometry.nested_tlb,))[0],
    )
