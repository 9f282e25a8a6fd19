"""Bytes of page tables of a dense mapping, counted in the core's own tables.

4 KiB mappings are made by faults, as in a simulation; larger leaves are mapped directly.
The largest footprints at 4 KiB are left out: their tables would take as much real memory
as they simulate.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

from simvm.hardware.geometry import ORDER_BYTES, ORDER_NAMES
from simvm.units import MIB, parse_bytes
from simvm.validation.laws import table_bytes
from simvm.validation.machine import REGION_BASE, Machine
from simvm.validation.rows import EXACT, Published, Row


def table_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """Exact, at all sizes."""
    for row in published["rows"]:
        footprint, order = parse_bytes(row["footprint"]), ORDER_NAMES.index(row["leaf"])
        target = f"page-table bytes, {row['footprint']} in {row['leaf']}"
        expected = table_bytes(footprint, ORDER_BYTES[order])
        pages = _faulted(core, footprint) if order == 0 else _mapped(core, footprint, order)
        source = published["source"]
        yield Row(target, expected, pages * 4096, EXACT, "absolute", source, "identity")


def _faulted(core: ModuleType, footprint: int) -> int:
    machine = Machine(core, footprint, None, 0)
    machine.populate()
    return int(machine.host_table.table_pages)


def _mapped(core: ModuleType, footprint: int, order: int) -> int:
    table = core.PageTable(4, core.BlockAllocator(64 * MIB))
    for offset in range(0, footprint, ORDER_BYTES[order]):
        table.map(REGION_BASE + offset, offset, order)
    return int(table.table_pages)
