"""What one TLB miss loads: the page-table entries of a single walk, one address after another.

Real tables are built in the compiled core, one page is mapped, and an MMU with every
cache off accesses it once; the addresses are those that the walker itself loaded. The
size of the TLB entry is found by probing a second MMU, which has nothing but a TLB,
beside the page. Neither comes from a formula. `docs/translation.md` describes the walk.

The layout is fixed, so that an answer can be checked by hand. Memory is three separate
places, each at a multiple of 1 GiB so that leaves of any size fit:

* table pages of the host at host-physical `HOST_TABLES`, in the order of their making;
* table pages of the guest at guest-physical `GUEST_TABLES`, likewise;
* the data in the guest-physical GiB at `GUEST_DATA`.

Guest-physical memory lies in the host `BACKING_OFFSET` higher. The access goes to index
1 of level 5, 2 of level 4, 3 of level 3, 4 of level 2 and 5 of level 1.

Left out: caches of any kind, which a scenario has.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from simvm.core_check import load_core
from simvm.errors import InvalidInput, Mistake, SimulationFailed, UsageError
from simvm.hardware.geometry import ORDER_BYTES, ORDER_NAMES, MmuGeometry, TlbArray
from simvm.units import GIB, MIB, UnitError, parse_bytes

HOST_TABLES: Final = 32 * GIB
GUEST_TABLES: Final = GIB
GUEST_DATA: Final = 3 * GIB
BACKING_OFFSET: Final = 64 * GIB

LEVELS: Final = (3, 4, 5)
_VIRTUALIZATIONS: Final = ("nested", "none")
_TABLE_ROOM: Final = 2 * MIB


def walk(
    *,
    guest: str | None,
    host: str,
    guest_levels: int = 4,
    host_levels: int = 4,
    guest_table_host: str | None = None,
    virtualization: str = "nested",
) -> dict[str, Any]:
    """The loads of one walk with every cache off.

    Parameters
    ----------
    guest, host
        Leaf sizes: ``"4KiB"``, ``"2MiB"`` or ``"1GiB"``. Without virtualization there is
        no guest leaf and `host` is the leaf of the one table.
    guest_levels, host_levels
        Levels of the tables, 3 to 5.
    guest_table_host
        Leaf of the host under the guest's table pages; by default `host`.
    virtualization
        ``"nested"`` or ``"none"``.

    Returns
    -------
    dict
        ``loads``; ``tlb_entry``, the size of the TLB entry that the walk yields;
        ``addresses``, host-physical, in the order of loading; and ``steps``, which says
        of each address whose table it lies in, at which level and index, and what the
        table translates. The question itself follows.

    Raises
    ------
    InvalidInput
        A size is none, or no leaf; a number of levels is not 3 to 5.
    UsageError
        The parts of the question do not go together.
    """
    if virtualization not in _VIRTUALIZATIONS:
        raise UsageError(f"--virtualization (={virtualization}) must be nested or none")
    nested = virtualization == "nested"
    if nested and guest is None:
        raise UsageError("a nested walk needs --guest, the leaf size of the guest")
    if not nested and (guest is not None or guest_table_host is not None or guest_levels != 4):
        raise UsageError("without virtualization there is no guest: give --host alone")

    mistakes: list[Mistake] = []
    guest_order = _order("--guest", guest, mistakes)
    host_order = _order("--host", host, mistakes)
    table_order = _order("--guest-table-host", guest_table_host, mistakes)
    for key, levels in (("--guest-levels", guest_levels), ("--host-levels", host_levels)):
        if levels not in LEVELS:
            mistakes.append(Mistake("", key, str(levels), "must be 3, 4 or 5", f"{key} 4"))
    if mistakes:
        raise InvalidInput(mistakes)
    assert host_order is not None

    core = load_core()
    if guest_order is None:
        tables = _native(core, host_order, host_levels)
    else:
        if table_order is None:
            table_order = host_order
        tables = _nested(core, guest_order, host_order, table_order, guest_levels, host_levels)
    addresses = _loads(core, tables)
    question: dict[str, Any] = {"virtualization": virtualization}
    if guest_order is not None and table_order is not None:
        question |= {"guest": ORDER_NAMES[guest_order], "guest_levels": guest_levels}
        question |= {"guest_table_host": ORDER_NAMES[table_order]}
    return {
        "loads": len(addresses),
        "tlb_entry": _tlb_entry(core, tables),
        "addresses": addresses,
        "steps": _steps(tables, addresses),
        **question,
        "host": ORDER_NAMES[host_order],
        "host_levels": host_levels,
    }


def accessed_address(levels: int) -> int:
    """The virtual address accessed, in a space of `levels` levels."""
    indices = (5, 4, 3, 2, 1)[:levels]  # of levels 1, 2, ...
    return sum(index << (12 + 9 * place) for place, index in enumerate(indices))


@dataclass(frozen=True)
class _Tables:
    """The tables of one question. `guest` is None in a native walk."""

    space: Any
    address: int
    host: Any
    guest: Any


def _order(key: str, size: str | None, mistakes: list[Mistake]) -> int | None:
    """The order of the leaf `size`; a mistake is noted."""
    if size is None:
        return None
    fix = f"one of {', '.join(f'{key} {name}' for name in ORDER_NAMES)}"
    try:
        value = parse_bytes(size)
    except UnitError as error:
        mistakes.append(Mistake("", key, repr(error.text), error.rule, fix))
        return None
    if value not in ORDER_BYTES:
        mistakes.append(Mistake("", key, repr(size), "is not the size of a leaf", fix))
        return None
    return ORDER_BYTES.index(value)


def _map(table: Any, address: int, target: int, order: int) -> None:
    """Map the page of `order` around `address` so that `address` meets `target`."""
    rest = address % ORDER_BYTES[order]
    if table.lookup(address) is None:
        table.map(address - rest, target - rest, order)


def _native(core: ModuleType, order: int, levels: int) -> _Tables:
    table = core.PageTable(levels, core.BlockAllocator(_TABLE_ROOM, HOST_TABLES))
    address = accessed_address(levels)
    _map(table, address, BACKING_OFFSET + GUEST_DATA + address % GIB, order)
    return _Tables(core.AddressSpace(1, table), address, table, None)


def _nested(
    core: ModuleType,
    guest_order: int,
    host_order: int,
    table_order: int,
    guest_levels: int,
    host_levels: int,
) -> _Tables:
    host = core.PageTable(host_levels, core.BlockAllocator(_TABLE_ROOM, HOST_TABLES))
    guest = core.PageTable(guest_levels, core.BlockAllocator(_TABLE_ROOM, GUEST_TABLES))
    address = accessed_address(guest_levels)
    data = GUEST_DATA + address % GIB
    _map(guest, address, data, guest_order)
    for page in range(guest.table_pages):
        at = GUEST_TABLES + page * ORDER_BYTES[0]
        _map(host, at, BACKING_OFFSET + at, table_order)
    _map(host, data, BACKING_OFFSET + data, host_order)
    return _Tables(core.AddressSpace(1, host, guest), address, host, guest)


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
    mmu = core.Mmu(MmuGeometry(l1_load=(TlbArray((0, 1, 2), 16, 16),)))
    mmu.access(tables.space, tables.address)
    order = 0
    for larger in (1, 2):
        hits = mmu.counters()["l1_hits"]
        mmu.access(tables.space, tables.address + ORDER_BYTES[larger - 1])
        if mmu.counters()["l1_hits"] > hits:
            order = larger
    return ORDER_NAMES[order]


def _steps(tables: _Tables, addresses: list[int]) -> list[dict[str, Any]]:
    """What each load was for, read off where it lies.

    A walk of the host's table begins in its root and goes down a level with each load; a
    load elsewhere is the guest's, a level further down each time. What the host's loads
    translated is known by what follows them: a guest table, or nothing but the data.
    """
    steps: list[dict[str, Any]] = []
    root = tables.host.root
    level, guest_level = 0, tables.guest.levels if tables.guest is not None else 0
    translated: list[dict[str, Any]] = []
    for address in addresses:
        index = address % ORDER_BYTES[0] // 8
        step = {"address": address, "table": "host", "level": 0, "index": index}
        step["translates"] = "data"
        if HOST_TABLES <= address < HOST_TABLES + _TABLE_ROOM:
            level = tables.host.levels if root <= address < root + ORDER_BYTES[0] else level - 1
            step["level"] = level
            translated.append(step)
        else:
            step |= {"table": "guest", "level": guest_level}
            for earlier in translated:
                earlier["translates"] = f"guest table of level {guest_level}"
            translated.clear()
            guest_level -= 1
        steps.append(step)
    return steps
