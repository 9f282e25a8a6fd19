"""Pages that uniform accesses have touched and faulted in, against the occupancy law."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

from simvm.hardware.geometry import ORDER_BYTES, ORDER_NAMES, MmuGeometry
from simvm.units import parse_bytes
from simvm.validation.laws import first_touches
from simvm.validation.machine import Machine
from simvm.validation.rows import Published, Row, basis
from simvm.workload.patterns import random_bits


def touch_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """Host faults of a guest with lazily backed 1 GiB pages; all sizes are full."""
    for number, row in enumerate(published["rows"]):
        order, size = ORDER_NAMES.index(row["page"]), parse_bytes(row["footprint"])
        pages = size // ORDER_BYTES[order]
        accesses = round(pages * row["accesses_per_page"])
        machine = Machine(core, size, 2, order)
        vcpu = machine.vcpu(MmuGeometry.bare())
        stream = core.Stream.uniform(random_bits(number, "first touch"), size)
        machine.run(vcpu, stream, accesses)
        stands_on = basis(published, row)
        expected = first_touches(pages, accesses)
        name = f"{row['page']} pages of {row['footprint']}, {accesses} uniform accesses"
        if order == 0:
            touched = machine.touched_pages
            target = f"touched {name}"
            yield Row(target, expected, touched, stands_on)
        backed = machine.backed_pages[order]
        target = f"backed {name}"
        yield Row(target, expected, backed, stands_on)
