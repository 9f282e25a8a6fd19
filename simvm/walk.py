"""What one TLB miss loads: the page-table entries of a single walk, one address after another.

Real tables are built in the compiled core, one page is mapped, and an MMU with every
cache off accesses it once; the addresses are those that the walker itself loaded. The
size of the TLB entry is found by probing a second MMU, which has nothing but a TLB,
beside the page. Neither comes from a formula. `docs/translation.md` describes the walk.

The layout is fixed, so that an answer can be checked by hand. Memory is three separate
places, each at a multiple of 1 GiB so that leaves of any size fit:

* table pages of the host at host-physical `HOST_TABLES`, in the order of their making;
* table pages of the guest at guest-physical `GUEST_TABLES`, likewise;
* the data in the guest-physical GiB at `GUEST_DATA`; where the host's root is several
  tables in a row, as far into what the last of them maps.

What is guest-physical lies in the host `BACKING_OFFSET` higher, the data as if the root
were one table. The access goes to index 1 of level 5, 2 of level 4, 3 of level 3, 4 of
level 2 and 5 of level 1, or to the last index of a root that has fewer.

Left out: caches of any kind, which a scenario has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import ModuleType
from typing import Any, Final

from simvm.core_check import load_core
from simvm.errors import InvalidInput, Mistake, SimulationFailed, UsageError, did_you_mean
from simvm.hardware.formats import FORMATS, GRANULES, leaf_bytes, root_tables
from simvm.hardware.geometry import ENTRY_SHIFTS, PAGE, MmuGeometry, TableFormat, TlbArray
from simvm.units import GIB, MIB, UnitError, format_bytes, parse_bytes

HOST_TABLES: Final = 32 * GIB
GUEST_TABLES: Final = GIB
GUEST_DATA: Final = 3 * GIB
BACKING_OFFSET: Final = 64 * GIB

LEVELS: Final = (2, 3, 4, 5)
ROOT_TABLES: Final = (1, 2, 4, 8, 16)
SIDES: Final = ("guest", "host", "both")
_VIRTUALIZATIONS: Final = ("nested", "none")
_TABLE_ROOM: Final = 2 * MIB
_LEAST_BITS: Final = 32
"""Of address, for what stands at `GUEST_DATA`."""
_MOST_BITS: Final = 57
_GROUP: Final = 16
"""Pages of 4 KiB that the contiguous hint joins."""


def walk(
    *,
    guest: str | None,
    host: str,
    guest_levels: int | None = None,
    host_levels: int | None = None,
    guest_table_host: str | None = None,
    virtualization: str = "nested",
    guest_granule: str | None = None,
    host_granule: str | None = None,
    host_root_tables: int | None = None,
    guest_format: str | None = None,
    host_format: str | None = None,
    contiguous: str | None = None,
) -> dict[str, Any]:
    """The loads of one walk with every cache off.

    Parameters
    ----------
    guest, host
        Leaf sizes, of those that the granule has: ``"4KiB"``, ``"2MiB"`` or ``"1GiB"``;
        ``"16KiB"`` or ``"32MiB"``; ``"64KiB"`` or ``"512MiB"``. Without virtualization there
        is no guest leaf and `host` is the leaf of the one table.
    guest_levels, host_levels
        Levels of the tables, 2 to 5; by default 4, and 3 with a granule above 4 KiB.
    guest_table_host
        Leaf of the host under the guest's table pages; by default `host`.
    virtualization
        ``"nested"`` or ``"none"``.
    guest_granule, host_granule
        ``"4KiB"`` (the default), ``"16KiB"`` or ``"64KiB"``.
    host_root_tables
        Tables in a row that are the root of a SLAT: 1, 2, 4, 8 or 16.
    guest_format, host_format
        Names of `simvm.hardware.formats`, in place of levels, granule and root.
    contiguous
        The side (``"guest"``, ``"host"`` or ``"both"``) whose page of 4 KiB is one of sixteen
        in a row that bear the contiguous hint.

    Returns
    -------
    dict
        ``loads``; ``tlb_entry``, the size of the TLB entry that the walk yields;
        ``addresses``, host-physical, in the order of loading; and ``steps``, which says
        of each address whose table it lies in, at which level and index, and what the
        table translates. The question itself follows, with the formats of the tables.

    Raises
    ------
    InvalidInput
        A size is none, or no leaf of its table; there is no such format; and the like.
    UsageError
        The parts of the question do not go together.
    """
    if virtualization not in _VIRTUALIZATIONS:
        raise UsageError(f"--virtualization (={virtualization}) must be nested or none")
    nested = virtualization == "nested"
    if nested and guest is None:
        raise UsageError("a nested walk needs --guest, the leaf size of the guest")
    of_guest = (guest, guest_levels, guest_table_host, guest_granule, guest_format)
    if not nested and (any(part is not None for part in of_guest) or contiguous == "guest"):
        raise UsageError("without virtualization there is no guest: give --host alone")

    about_tables: list[Mistake] = []
    guest_form = _Shape("guest", guest_format, guest_levels, guest_granule).form(1, about_tables)
    host_shape = _Shape("host", host_format, host_levels, host_granule, host_root_tables)
    host_form = host_shape.form(2 if nested else 1, about_tables)
    mistakes: list[Mistake] = []
    guest_order = _order("--guest", guest, guest_form, mistakes)
    host_order = _order("--host", host, host_form, mistakes)
    table_order = _order("--guest-table-host", guest_table_host, host_form, mistakes)
    mistakes += about_tables
    if not mistakes and contiguous is not None:
        guest_form, host_form = _hinted(
            contiguous, (guest_form, guest_order, guest_format),
            (host_form, host_order, host_format), mistakes,
        )  # fmt: skip
    if mistakes:
        raise InvalidInput(mistakes)
    assert host_order is not None

    core = load_core()
    of_host = _Side(host_form, host_order)
    question: dict[str, Any] = {"virtualization": virtualization}
    if guest_order is None:
        tables = _native(core, of_host)
    else:
        of_guest_tables = _Side(host_form, host_order if table_order is None else table_order)
        of_guest_leaf = _Side(guest_form, guest_order)
        tables = _nested(core, of_guest_leaf, of_host, of_guest_tables)
        question |= {"guest": of_guest_leaf.leaf, "guest_levels": guest_form.levels}
        question |= {"guest_table_host": of_guest_tables.leaf}
        question |= {"guest_format": _described(guest_form, guest_format)}
    addresses = _loads(core, tables)
    return {
        "loads": len(addresses),
        "tlb_entry": _tlb_entry(core, tables),
        "addresses": addresses,
        "steps": _steps(tables, addresses),
        **question,
        "host": of_host.leaf,
        "host_levels": host_form.levels,
        "host_format": _described(host_form, host_format),
    }


def accessed_address(form: TableFormat) -> int:
    """The virtual address accessed, in a space of tables of that format."""
    width = form.granule_shift - 3
    indices = [5, 4, 3, 2, 1][: form.levels]  # of levels 1, 2, ...
    indices[-1] = min(indices[-1], (1 << (form.root_bits or width)) - 1)
    return sum(index << (form.granule_shift + width * place) for place, index in enumerate(indices))


# --- the question -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Shape:
    """What is said of the tables of a side."""

    side: str
    name: str | None
    levels: int | None
    granule: str | None
    root_tables: int | None = None

    def form(self, stage: int, mistakes: list[Mistake]) -> TableFormat:
        """The format; where mistakes are noted, one for the rest of the question."""
        if self.name is not None:
            return self._named(self.name, stage, mistakes)
        granule = _granule(f"--{self.side}-granule", self.granule, mistakes)
        levels = GRANULES[granule] if self.levels is None else self.levels
        noted = len(mistakes)
        if levels not in LEVELS:
            key = f"--{self.side}-levels"
            mistakes.append(Mistake("", key, str(levels), "must be 2 to 5", f"{key} 3"))
        root = self._root_bits(granule, stage, mistakes)
        form = TableFormat(levels, granule, root)
        if len(mistakes) == noted:
            self._check_reach(form, mistakes)
        return form if len(mistakes) == noted else TableFormat(GRANULES[granule], granule)

    def _named(self, name: str, stage: int, mistakes: list[Mistake]) -> TableFormat:
        key = f"--{self.side}-format"
        for part in ("levels", "granule", "root_tables"):
            value = getattr(self, part)
            if value is not None:
                other = f"--{self.side}-{part.replace('_', '-')}"
                rule = f"goes without {key}, which says all of the table"
                mistakes.append(Mistake("", other, str(value), rule, f"remove it, or {key}"))
        usable = [known for known in FORMATS if stage in FORMATS[known].stages]
        if name not in FORMATS:
            rule, fix = "no such format", did_you_mean(name, usable)
        elif stage not in FORMATS[name].stages:
            what = "virtual addresses" if stage == 1 else "guest-physical addresses"
            rule, fix = f"translates no {what}", f"one of {', '.join(usable)}"
        else:
            return FORMATS[name].form
        mistakes.append(Mistake("", key, repr(name)[:80], rule, fix))
        return TableFormat()

    def _root_bits(self, granule: int, stage: int, mistakes: list[Mistake]) -> int:
        """Bits of the root's index; 0 where it is one table."""
        key, count = "--host-root-tables", self.root_tables
        if count in (None, 1):
            return 0
        if count not in ROOT_TABLES:
            mistakes.append(Mistake("", key, str(count), "must be 1, 2, 4, 8 or 16", f"{key} 2"))
            return 0
        if stage == 1:
            rule = "only the root of a stage 2 is several tables in a row"
            mistakes.append(Mistake("", key, str(count), rule, "remove it"))
        return granule - 3 + ROOT_TABLES.index(count)

    def _check_reach(self, form: TableFormat, mistakes: list[Mistake]) -> None:
        bits, key = form.address_bits, f"--{self.side}-levels"
        if not _LEAST_BITS <= bits <= _MOST_BITS:
            rule = f"reaches {bits} bits of address; {_LEAST_BITS} to {_MOST_BITS} are walked"
            fix = f"{key} {form.levels + (1 if bits < _LEAST_BITS else -1)}"
            mistakes.append(Mistake("", key, str(form.levels), rule, fix))


def _granule(key: str, size: str | None, mistakes: list[Mistake]) -> int:
    """log2 of the granule; that of 4 KiB where a mistake is noted."""
    usual = min(GRANULES)
    if size is None:
        return usual
    names = {format_bytes(1 << shift): shift for shift in GRANULES}
    value = _bytes(key, size, list(names), "is not the size of a granule", mistakes)
    return usual if value is None else names[format_bytes(value)]


def _order(key: str, size: str | None, form: TableFormat, mistakes: list[Mistake]) -> int | None:
    """The order of the leaf `size`; a mistake is noted."""
    if size is None:
        return None
    sizes = leaf_bytes(form.granule_shift, form.levels)
    names = [format_bytes(known) for known in sizes]
    rule = f"is not the size of a leaf of {form.levels} levels of {names[0]}"
    value = _bytes(key, size, names, rule, mistakes)
    return None if value is None else sizes.index(value)


def _bytes(
    key: str, size: str, names: Sequence[str], rule: str, mistakes: list[Mistake]
) -> int | None:
    """A size that must be one of `names`; else a mistake is noted."""
    fix = f"one of {', '.join(f'{key} {name}' for name in names)}"
    try:
        value = parse_bytes(size)
    except UnitError as error:
        mistakes.append(Mistake("", key, repr(error.text), error.rule, fix))
        return None
    if format_bytes(value) not in names:
        mistakes.append(Mistake("", key, repr(size), rule, fix))
        return None
    return value


_Hintable = tuple[TableFormat, int | None, str | None]


def _hinted(
    side: str, guest: _Hintable, host: _Hintable, mistakes: list[Mistake]
) -> tuple[TableFormat, TableFormat]:
    """The formats with the contiguous hint on the side named, or on what can have it of both."""
    forms = []
    for name, (form, order, of) in (("guest", guest), ("host", host)):
        able = order == 0 and 1 << form.granule_shift == PAGE and (not of or FORMATS[of].hint)
        forms.append(replace(form, contiguous=able and side in (name, "both")))
    if side not in SIDES or not any(form.contiguous for form in forms):
        rule = "the hint joins pages of 4KiB, of the 4KiB granule, and x86 has none"
        known = side in SIDES
        fix = "--guest 4KiB --host 4KiB, or remove it" if known else did_you_mean(side, SIDES)
        mistakes.append(Mistake("", "--contiguous", repr(side)[:80], rule, fix))
    return forms[0], forms[1]


def _described(form: TableFormat, name: str | None) -> dict[str, Any]:
    """A format for JSON."""
    return {
        "name": name,
        "granule": format_bytes(1 << form.granule_shift),
        "levels": form.levels,
        "root_tables": root_tables(form),
        "address_bits": form.address_bits,
        "contiguous": form.contiguous,
        "source": None if name is None else FORMATS[name].source,
    }


# --- the tables -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Side:
    """A format, and the order of a leaf in it."""

    form: TableFormat
    order: int

    @property
    def leaf_bytes(self) -> int:
        return leaf_bytes(self.form.granule_shift, self.form.levels)[self.order]

    @property
    def leaf(self) -> str:
        return format_bytes(self.leaf_bytes)

    def map(self, table: Any, address: int, target: int) -> None:
        """Map the page around `address` so that `address` meets `target`."""
        rest = address % self.leaf_bytes
        if table.lookup(address) is None:
            table.map(address - rest, target - rest, self.order)

    def map_data(self, table: Any, address: int, target: int) -> None:
        """The same, and the whole group of pages if they are contiguous."""
        pages = _GROUP if self.form.contiguous else 1
        before = address % (pages * self.leaf_bytes)
        for offset in range(0, pages * self.leaf_bytes, self.leaf_bytes):
            self.map(table, address - before + offset, target - before + offset)


@dataclass(frozen=True)
class _Tables:
    """The tables of one question. The guest has none in a native walk."""

    space: Any
    address: int
    host: Any
    host_form: TableFormat
    guest_form: TableFormat | None = None


def _table(core: ModuleType, form: TableFormat, base: int) -> Any:
    """An empty table, with its pages from `base` up."""
    return core.PageTable(
        form.levels, core.BlockAllocator(_TABLE_ROOM, base), granule_shift=form.granule_shift,
        root_bits=form.root_bits, contiguous=form.contiguous,
    )  # fmt: skip


def _native(core: ModuleType, host: _Side) -> _Tables:
    table = _table(core, host.form, HOST_TABLES)
    address = accessed_address(host.form)
    host.map_data(table, address, BACKING_OFFSET + GUEST_DATA + address % GIB)
    return _Tables(core.AddressSpace(1, table), address, table, host.form)


def _nested(core: ModuleType, guest: _Side, host: _Side, under_tables: _Side) -> _Tables:
    host_table = _table(core, host.form, HOST_TABLES)
    guest_table = _table(core, guest.form, GUEST_TABLES)
    address = accessed_address(guest.form)
    data = GUEST_DATA + address % GIB
    one_table = (1 << host.form.address_bits) // root_tables(host.form)
    data_gpa = (root_tables(host.form) - 1) * one_table + data % one_table
    guest.map_data(guest_table, address, data_gpa)
    for page in range(guest_table.table_pages):
        at = GUEST_TABLES + page * PAGE
        under_tables.map(host_table, at, BACKING_OFFSET + at)
    host.map_data(host_table, data_gpa, BACKING_OFFSET + data)
    space = core.AddressSpace(1, host_table, guest_table)
    return _Tables(space, address, host_table, host.form, guest.form)


# --- the answer -------------------------------------------------------------------------


def _loads(core: ModuleType, tables: _Tables) -> list[int]:
    """Host-physical addresses that the walk loaded, in order."""
    mmu = core.Mmu(MmuGeometry.bare())
    mmu.record_loads()
    status, fault = mmu.access(tables.space, tables.address)
    if status != core.OK:
        raise SimulationFailed(f"the walk for a mapped page faulted at {fault:#x}")
    return [int(address) for address in mmu.recorded_loads()]


def _tlb_entry(core: ModuleType, tables: _Tables) -> str:
    """The size of the entry that the walk puts in a TLB: how far around the page it hits.

    Where the neighbour misses, nothing need be mapped: its fault is as good an answer.
    """
    mmu = core.Mmu(MmuGeometry(l1_load=(TlbArray(tuple(range(len(ENTRY_SHIFTS))), 16, 16),)))
    mmu.access(tables.space, tables.address)
    sizes = sorted(1 << shift for shift in ENTRY_SHIFTS)
    entry = sizes[0]
    for smaller, size in pairwise(sizes):
        hits = mmu.counters()["l1_hits"]
        mmu.access(tables.space, tables.address + smaller)
        if mmu.counters()["l1_hits"] == hits:
            break
        entry = size
    return format_bytes(entry)


def _steps(tables: _Tables, addresses: list[int]) -> list[dict[str, Any]]:
    """What each load was for, read off where it lies.

    A walk of the host's table begins in its root and goes down a level with each load; a
    load elsewhere is the guest's, a level further down each time. What the host's loads
    translated is known by what follows them: a guest table, or nothing but the data.
    """
    steps: list[dict[str, Any]] = []
    host, guest, root = tables.host_form, tables.guest_form, tables.host.root
    table_bytes = 1 << host.granule_shift
    level, guest_level = 0, guest.levels if guest is not None else 0
    translated: list[dict[str, Any]] = []
    for address in addresses:
        step = {"address": address, "table": "host", "level": 0, "index": 0, "translates": "data"}
        if HOST_TABLES <= address < HOST_TABLES + _TABLE_ROOM:
            in_root = root <= address < root + root_tables(host) * table_bytes
            level = host.levels if in_root else level - 1
            start = root if in_root else address - address % table_bytes
            step |= {"level": level, "index": (address - start) // 8}
            translated.append(step)
        else:
            assert guest is not None
            index = address % (1 << guest.granule_shift) // 8
            step |= {"table": "guest", "level": guest_level, "index": index}
            for earlier in translated:
                earlier["translates"] = f"guest table of level {guest_level}"
            translated.clear()
            guest_level -= 1
        steps.append(step)
    return steps
