"""What carries out a program on one implementation of the MMU.

That is either `simvm.reference` or `simvm._core`. A `Machine` says after each step all
that can be observed; two machines that run the same program are compared step by step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from programs import (
    Absent,
    Access,
    Change,
    Demand,
    Flush,
    Map,
    Program,
    Prune,
    Step,
    Visit,
    reach_bits,
)

from simvm.hardware.geometry import TableFormat

TABLES_BYTES = 1 << 30
HOST_TABLES_BASE = 1 << 30
GUEST_TABLES_BASE = 0
HOST_DATA_BASE = 1 << 36  # within the reach of the smallest data cache (256 GiB)
VPIDS = (0, 65534)
ASIDS = (1, 65534, 3)


class Machine:
    """One implementation with one MMU and the address spaces that a program asks for.

    `allocator(bytes, base)` makes what hands out table pages. Tables are numbered: the
    guests' (or the native spaces') first, in the order of the spaces, then the SLATs.
    `happened` counts what programs are meant to bring about.
    """

    def __init__(
        self, twin: ModuleType, allocator: Callable[[int, int], Any], program: Program
    ) -> None:
        self._twin = twin
        self._targets = program.targets
        self.mmu = self.make_mmu(program)
        self.happened: Counter[str] = Counter()
        self._now = 0
        in_host = allocator(TABLES_BYTES, HOST_TABLES_BASE)
        self._slats = [self._table(form, in_host) for form in program.slats]
        in_guests = [allocator(TABLES_BYTES, GUEST_TABLES_BASE) for _ in program.slats]
        self._vms = [vm for _, vm in program.guests]  # by space
        forms = [form for form, _ in program.guests] or list(program.native)
        self.tables = [
            *(self._table(form, in_guests[vm]) for form, vm in program.guests),
            *(self._table(form, in_host) for form in program.native),
            *self._slats,
        ]
        self._tags: list[tuple[int, int]] = []  # vpid and asid, by space
        self.spaces = []
        for number in range(len(forms)):
            vpid = VPIDS[self._vms[number] if self._slats else number % 2]
            asid = ASIDS[sum(tag[0] == vpid for tag in self._tags)]
            self._tags.append((vpid, asid))
            self.spaces.append(self._space(number, asid, vpid))
        self._forms = [*forms, *program.slats]
        # Per table, the bases of its leaves and their orders, as the program made them.
        self._leaves: list[dict[int, int]] = [{} for _ in self.tables]

    def make_mmu(self, program: Program) -> Any:
        """The twin's keeps targets, whether asked for or not."""
        return self._twin.Mmu(program.geometry)

    def _table(self, form: TableFormat, memory: Any) -> Any:
        return self._twin.PageTable(
            form.levels,
            memory,
            granule_shift=form.granule_shift,
            root_bits=form.root_bits,
            contiguous=form.contiguous,
        )

    def _space(self, number: int, asid: int, vpid: int) -> Any:
        table = self.tables[number]
        if not self._slats:
            return self._twin.AddressSpace(asid, table, vpid=vpid)
        return self._twin.AddressSpace(asid, self._slats[self._vms[number]], table, vpid=vpid)

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
            [
                tuple(table.lookup(base + self._size(number, order) // 2))
                for base, order in self._leaves[number].items()
            ]
            for number, table in enumerate(self.tables)
        ]

    # --- The steps

    def _access(self, step: Access) -> list[Any]:
        number = step.space % len(self.spaces)
        start = self._wrapped(number, step.address)
        if step.leaf is not None and self._leaves[number]:
            base, order = self._pick(number, step.leaf)
            start = base + step.address % self._size(number, order)
        turns = (start + turn % step.period * step.stride for turn in range(step.length))
        return self._accesses(step, number, turns)

    def _visit(self, step: Visit) -> list[Any]:
        return self._accesses(step, step.space % len(self.spaces), step.addresses)

    def _accesses(self, step: Access | Visit, number: int, addresses: Iterable[int]) -> list[Any]:
        outcome = []
        for turn, address in enumerate(addresses):
            va = self._wrapped(number, address)
            write = bool(step.writes >> turn & 1)
            result = self._one_access(step, number, va, write)
            outcome.append(result)
            rounds = 0
            while result[0] != self._twin.OK and rounds < step.demand.rounds:
                outcome.append(self._serve(number, result, step.demand))
                result = self._one_access(step, number, va, write)
                outcome.append(result)
                rounds += 1
        return outcome

    def _one_access(self, step: Access | Visit, number: int, va: int, write: bool) -> Any:
        space = self.spaces[number]
        if step.translate and self._targets:
            return self.mmu.translate(space, va, write)
        if step.pace is None:
            return self.mmu.access(space, va, write)
        self._now += step.pace
        return self.mmu.access(space, va, write, now=self._now)

    def _serve(self, number: int, fault: tuple[int, int], demand: Demand) -> list[Any]:
        """Map what was missing: in the order asked for, or in the largest that fits."""
        code, address = fault
        in_host = code == self._twin.SLAT_FAULT
        table = self._slat_of(number) if in_host and self._slats else number
        order, first = demand.host_order, demand.frame
        if not in_host:
            order = demand.guest_order
            first = demand.frame if demand.guest_frame is None else demand.guest_frame
        outcome = []
        while order >= 0:
            base = address & -self._size(table, order)
            frame = first + base // self._size(table, order) % 64
            outcome.append(self._try_map(table, base, frame, order))
            if outcome[-1] == "mapped":
                break
            order -= 1
        return outcome

    def _map(self, step: Map) -> list[str]:
        number = step.table % len(self.tables)
        address = self._wrapped(number, step.address)
        size = self._size(number, step.order)
        if not step.askew:
            address &= -size * step.leaves
        return [
            self._try_map(number, address + leaf * size, step.frame + leaf, step.order)
            for leaf in range(step.leaves)
        ]

    def _try_map(self, number: int, address: int, frame: int, order: int) -> str:
        """Map to frame `frame` of that order, in the part of memory that the table maps."""
        target = self._target(number, frame, order)
        if target is None:
            return "beyond the SLAT"
        table = self.tables[number]
        pages = table.table_pages
        try:
            table.map(address, target, order)
        except ValueError:
            return "refused"
        if table.table_pages < pages:
            self.mmu.flush_guest(self._vpid(number))
        self._leaves[number][address] = order
        return "mapped"

    def _change(self, step: Change) -> Any:
        number = step.table % len(self.tables)
        if not self._leaves[number]:
            return None
        base, order = self._pick(number, step.leaf)
        leaf = self.tables[number].lookup(base)
        outcome = self._apply(step.what, number, base + self._size(number, order) // 2, step.frame)
        size = self._size(number, leaf.order)
        if step.what == "collapse" and not isinstance(outcome, type):
            size = self._size(number, leaf.order + 1)
        start = base & -size
        if number >= len(self.spaces):
            self._flush_slat(step, number, start, size)
        elif step.flush in ("none", "gpa"):
            if step.what != "unmap" or step.flush == "gpa":
                vpid, asid = self._tags[number]
                self.mmu.flush_asid(asid, vpid)
        else:
            self._flush(Flush(step.flush, number, start, size))
        return outcome

    def _flush_slat(self, step: Change, number: int, start: int, size: int) -> None:
        if step.flush == "gpa" and self._targets:
            self.mmu.flush_gpa(start, size, self._vpid(number))
        elif step.what != "clear_accessed" and step.flush in ("guest", "range", "gpa"):
            self.mmu.flush_guest(self._vpid(number))
        elif step.what != "clear_accessed":
            self.mmu.flush_all()

    def _absent(self, step: Absent) -> Any:
        number = step.table % len(self.tables)
        address = self._wrapped(number, step.address)
        outcome = self._apply(step.what, number, address, step.frame)
        self.mmu.flush_all()
        return outcome

    def _apply(self, what: str, number: int, address: int, frame: int) -> Any:
        table = self.tables[number]
        leaf = table.lookup(address)
        arguments = [address]
        if what == "collapse":
            order = 0 if leaf is None else leaf.order + 1
            arguments.append(self._target(number, frame, order) or 0)
        try:
            outcome = getattr(table, what)(*arguments)
        except (KeyError, ValueError) as error:
            return type(error)
        self.happened[what] += 1
        self._note(what, number, address, leaf)
        return outcome

    def _note(self, what: str, number: int, address: int, leaf: Any) -> None:
        """Keep up `_leaves` with what was done at the leaf, which a split may have left out."""
        leaves = self._leaves[number]
        if what in ("unmap", "split"):
            leaves.pop(leaf.base, None)
        if what == "split":
            size = self._size(number, leaf.order - 1)
            last = self._size(number, leaf.order) // size - 1
            # Those that programs are likely to meet again stand for all.
            for index in (*range(16), last - 1, last):
                leaves[leaf.base + index * size] = leaf.order - 1
        elif what == "collapse":
            size = self._size(number, leaf.order + 1)
            base = address & -size
            for small in [small for small in leaves if base <= small < base + size]:
                del leaves[small]
            leaves[base] = leaf.order + 1

    def _prune(self, step: Prune) -> None:
        self.tables[step.table % len(self.tables)].prune()
        self.mmu.flush_all()

    def _flush(self, step: Flush) -> None:
        vpid, asid = self._tags[step.space % len(self.spaces)]
        if step.what == "range":
            self.mmu.flush_range(asid, step.address, step.length, vpid)
        elif step.what == "asid":
            self.mmu.flush_asid(asid, vpid)
        elif step.what == "guest":
            self.mmu.flush_guest(vpid)
        elif step.what == "gpa" and self._targets and self._slats:
            self.mmu.flush_gpa(step.address, step.length, vpid)
        else:
            self.mmu.flush_all()

    # --- What tables there are

    def _pick(self, number: int, leaf: int) -> tuple[int, int]:
        found = sorted(self._leaves[number].items())
        return found[leaf % len(found)]

    def _slat_of(self, space: int) -> int:
        return len(self.spaces) + self._vms[space]

    def _vpid(self, number: int) -> int:
        """The tag of the VM that the table is of."""
        if number < len(self.spaces):
            return self._tags[number][0]
        return VPIDS[number - len(self.spaces)]

    def _size(self, number: int, order: int) -> int:
        """Bytes of a leaf, or of one that the format does not have, to be refused."""
        granule = self._forms[number].granule_shift
        return 1 << (granule + (granule - 3) * order)

    def _target(self, number: int, frame: int, order: int) -> int | None:
        """Where frame `frame` of that order lies; None where the SLAT does not reach."""
        size = self._size(number, order)
        if number >= len(self.spaces) or not self._slats:
            return HOST_DATA_BASE + frame * size
        reach = 1 << reach_bits(self._forms[self._slat_of(number)])
        return None if size > reach else frame * size % reach

    def _wrapped(self, number: int, address: int) -> int:
        """The address, within the reach of the table's root."""
        return address % (1 << reach_bits(self._forms[number]))
