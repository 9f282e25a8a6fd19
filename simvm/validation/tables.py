"""Bytes of page tables of a dense mapping, counted in the core's own tables.

4 KiB mappings are made by faults, as in a simulation; larger leaves are mapped directly.
The largest footprints at 4 KiB are left out: their tables would take as much real memory
as they simulate.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

from simvm.hardware.formats import FORMATS, leaf_bytes, root_bytes
from simvm.hardware.geometry import ORDER_BYTES, TableFormat
from simvm.units import MIB, parse_bytes
from simvm.validation.laws import table_bytes
from simvm.validation.machine import REGION_BASE, Machine
from simvm.validation.rows import EXACT, Published, Row


def table_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """Exact, at all sizes."""
    for row in published["rows"]:
        footprint, leaf = parse_bytes(row["footprint"]), parse_bytes(row["leaf"])
        target = f"page-table bytes, {row['footprint']} in {row['leaf']}"
        expected = table_bytes(footprint, leaf)
        if leaf == ORDER_BYTES[0]:
            pages = _faulted(core, footprint)
        else:
            pages = _mapped(core, TableFormat(), REGION_BASE, footprint, leaf)
        source = published["source"]
        yield Row(target, expected, pages * 4096, EXACT, "absolute", source, "identity")


def format_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """The same in the formats named, from address 0 on; exact, at all sizes."""
    for row in published["rows"]:
        named = FORMATS[row["format"]]
        form = named.form
        footprint, leaf = parse_bytes(row["footprint"]), parse_bytes(row["leaf"])
        target = f"page-table bytes, {row['format']}, {row['footprint']} in {row['leaf']}"
        granule = 1 << form.granule_shift
        expected = table_bytes(footprint, leaf, form.levels, granule, root_bytes(form))
        pages = _mapped(core, form, 0, footprint, leaf)
        source = f"{published['source']}; {named.source}"
        yield Row(target, expected, pages * 4096, EXACT, "absolute", source, "identity")


def _faulted(core: ModuleType, footprint: int) -> int:
    machine = Machine(core, footprint, None, 0)
    machine.populate()
    return int(machine.host_table.table_pages)


def _mapped(core: ModuleType, form: TableFormat, base: int, footprint: int, leaf: int) -> int:
    table = core.PageTable(
        form.levels, core.BlockAllocator(64 * MIB), granule_shift=form.granule_shift,
        root_bits=form.root_bits,
    )  # fmt: skip
    order = leaf_bytes(form.granule_shift, form.levels).index(leaf)
    for offset in range(0, footprint, leaf):
        table.map(base + offset, offset, order)
    return int(table.table_pages)
