"""Uniform loads over far more memory than a TLB reaches (GUPS), on each shipped CPU.

The share of accesses that hit either level of TLB follows from the size of the second level:
uniform draws find a page held with probability entries / pages, under any replacement that
does not look ahead. The entries are those of every second-level array that holds the page
size, both banks where there are two. L1 adds nothing: what it holds, the second level was
given in the same walk, and keeps for longer. For 1 GiB pages that is not so (a second level
may have few entries for them, or none, or hold them as 2 MiB ones), nor are 128 pages many:
there the readable twin counts the same accesses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import sqrt
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from simvm import reference
from simvm.hardware import load_cpu, names
from simvm.hardware.geometry import ORDER_BYTES, ORDER_NAMES, MmuGeometry
from simvm.units import GIB, MIB, parse_bytes
from simvm.validation.machine import REGION_BASE, Machine
from simvm.validation.rows import Published, Row, basis, sized
from simvm.workload.patterns import random_bits

_WARMUP_PER_ENTRY = 20
_HOST_TABLES: Final = 1 << 44


def hit_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """4 KiB natively, since a second table would take 256 MiB more; 2 MiB in 2 MiB of a host.

    The tolerance is a share of the law, or so many standard errors of that many draws. A fifth
    of the accesses when not at full size.
    """
    size = parse_bytes(published["footprint"])
    for row in published["rows"]:
        order = ORDER_NAMES.index(row["page"])
        pages, accesses = size // ORDER_BYTES[order], sized(full, row["accesses"])
        machine = Machine(core, size, order or None, order)
        for cpu in names():
            geometry = load_cpu(cpu).geometry
            entries = second_level_entries(geometry, order)
            vcpu = machine.vcpu(geometry)
            stream = core.Stream.uniform(random_bits(order, f"gups {cpu}"), size)
            machine.run(vcpu, stream, _WARMUP_PER_ENTRY * entries)
            counts = machine.counted(vcpu, stream, accesses)
            share = (counts["l1_hits"] + counts["l2_hits"]) / counts["accesses"]
            law = entries / pages
            stands_on = basis(published, row, inputs=[f"cpu.{cpu}.l1_load", f"cpu.{cpu}.l2"])
            if "standard_errors" in row:
                deviation = sqrt(law * (1 - law) / accesses) / law
                stands_on = replace(stands_on, tolerance=row["standard_errors"] * deviation)
            mapping = f"native {row['page']}" if order == 0 else f"{row['page']}+{row['page']}"
            target = f"GUPS hit share, {published['footprint']} in {mapping}, {cpu}"
            yield Row(target, law, share, stands_on)


def twin_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """1 GiB pages of a guest in 1 GiB of the host; a fifth of the accesses when not full."""
    size = parse_bytes(published["footprint"])
    for row in published["rows"]:
        accesses = sized(full, row["accesses"])
        for cpu in names():
            geometry = load_cpu(cpu).geometry
            offsets = np.random.default_rng([accesses, 3]).integers(0, size, accesses)
            mine = _share(core, lambda base: core.BlockAllocator(4 * MIB, base), geometry, offsets)
            twin = _share(reference, reference.BumpAllocator, geometry, offsets)
            target = f"GUPS hit share, {published['footprint']} in 1GiB+1GiB, {cpu}"
            stands_on = basis(published, row, inputs=[f"cpu.{cpu}.l1_load", f"cpu.{cpu}.l2"])
            yield Row(target, twin, mine, stands_on)


def second_level_entries(geometry: MmuGeometry, order: int) -> int:
    """Entries of the second-level TLB that a page of that order may take."""
    return sum(array.entries for array in geometry.l2 if order in array.orders)


def _share(
    model: ModuleType,
    allocator: Callable[[int], Any],
    geometry: MmuGeometry,
    offsets: NDArray[np.int64],
) -> float:
    """Share of hits by the core or by its twin, of loads through two tables of 1 GiB leaves."""
    pages = int(offsets.max()) // GIB + 1
    host = model.PageTable(4, allocator(_HOST_TABLES))
    guest = model.PageTable(4, allocator(pages * GIB))
    for page in range(pages):
        host.map(page * GIB, page * GIB, 2)
        guest.map(REGION_BASE + page * GIB, page * GIB, 2)
    host.map(pages * GIB, pages * GIB, 2)  # where the guest's tables lie
    space, mmu = model.AddressSpace(1, host, guest), model.Mmu(geometry)
    for offset in offsets.tolist():
        mmu.access(space, REGION_BASE + offset)
    counts = mmu.counters()
    share: float = (counts["l1_hits"] + counts["l2_hits"]) / counts["accesses"]
    return share
