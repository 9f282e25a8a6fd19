"""Bytes of page tables of a dense mapping, counted in the core's own tables.

4 KiB mappings are made by faults, as in a simulation; larger leaves are mapped directly. Where
the footprint is the largest, one 4 KiB leaf in each table stands for all 512: the tables are the
same. They take as much real memory as they simulate, 2 GiB for 1 TiB.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

from simvm.hardware.formats import FORMATS, leaf_bytes, root_bytes
from simvm.hardware.geometry import ORDER_BYTES, TableFormat
from simvm.units import GIB, MIB, parse_bytes
from simvm.validation.laws import table_bytes
from simvm.validation.machine import REGION_BASE, Machine
from simvm.validation.rows import Published, Row, basis


def table_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """Exact. `reduced` is the footprint of a row that is not at full size."""
    for row in published["rows"]:
        text = row["footprint"] if full else row.get("reduced", row["footprint"])
        footprint, leaf = parse_bytes(text), parse_bytes(row["leaf"])
        target = f"page-table bytes, {text} in {row['leaf']}"
        expected = table_bytes(footprint, leaf)
        if text == row["footprint"]:
            expected = row.get("bytes", expected)
        if leaf == ORDER_BYTES[0] and "reduced" not in row:
            pages = _faulted(core, footprint)
        else:
            step = max(leaf, ORDER_BYTES[1])
            pages = _mapped(core, TableFormat(), REGION_BASE, footprint, leaf, step)
        yield Row(target, expected, pages * 4096, basis(published, row))


def format_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """The same in the formats named, from address 0 on; exact, at all sizes."""
    for row in published["rows"]:
        named = FORMATS[row["format"]]
        form = named.form
        footprint, leaf = parse_bytes(row["footprint"]), parse_bytes(row["leaf"])
        target = f"page-table bytes, {row['format']}, {row['footprint']} in {row['leaf']}"
        granule = 1 << form.granule_shift
        expected = table_bytes(footprint, leaf, form.levels, granule, root_bytes(form))
        pages = _mapped(core, form, 0, footprint, leaf, leaf)
        stands_on = basis(published, row, source=named.source)
        yield Row(target, expected, pages * 4096, stands_on)


def _faulted(core: ModuleType, footprint: int) -> int:
    machine = Machine(core, footprint, None, 0)
    machine.populate()
    return int(machine.host_table.table_pages)


def _mapped(
    core: ModuleType, form: TableFormat, base: int, footprint: int, leaf: int, step: int
) -> int:
    """Table pages, of 4 KiB, with a leaf at every `step`."""
    room = footprint // GIB * 4 * MIB + 64 * MIB
    table = core.PageTable(
        form.levels, core.BlockAllocator(room), granule_shift=form.granule_shift,
        root_bits=form.root_bits,
    )  # fmt: skip
    order = leaf_bytes(form.granule_shift, form.levels).index(leaf)
    for offset in range(0, footprint, step):
        table.map(base + offset, offset, order)
    return int(table.table_pages)
