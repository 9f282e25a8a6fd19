"""TLB misses counted by another simulator, for a stream that both can make.

Every miss is compared, not a rate: a wrong set, way or age shows at once. The second level is
probed on a miss of the first, and a walk fills both.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from simvm.hardware.geometry import PAGE, MmuGeometry, TlbArray
from simvm.validation.machine import Machine
from simvm.validation.rows import Published, Row, basis


def miss_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """Of NumPy's default generator, native, 4 KiB; all sizes are full."""
    for row in published["rows"]:
        rng = np.random.default_rng(row["seed"])
        stream = rng.integers(0, row["pages"], row["accesses"])
        counted = misses(core, stream, tuple(row["l1"]), tuple(row["l2"]))
        name = f"{row['accesses']} uniform accesses to {row['pages']} pages"
        for level, expected, found in zip(("l1", "l2"), row["misses"], counted, strict=True):
            entries, ways = row[level]
            target = f"{level.upper()} misses, {entries} entries of {ways} ways, LRU, {name}"
            yield Row(target, expected, found, basis(published, row))


def misses(
    core: ModuleType, pages: NDArray[np.int64], l1: tuple[int, int], l2: tuple[int, int]
) -> tuple[int, int]:
    """Misses of the first and of both levels, each `(entries, ways)`, under loads of 4 KiB pages.

    An access that faults is retried and misses again, so misses are accesses without hits.
    """
    machine = Machine(core, (int(pages.max()) + 1) * PAGE, None, 0)
    vcpu = machine.vcpu(MmuGeometry(l1_load=(TlbArray((0,), *l1),), l2=(TlbArray((0,), *l2),)))
    stream = core.Stream.trace(np.random.PCG64(0), machine.region_bytes)
    stream.feed(pages.astype(np.uint64) * np.uint64(2 * PAGE))  # (offset << 1) | write
    counts = machine.counted(vcpu, stream, len(pages))
    first = counts["accesses"] - counts["l1_hits"]
    return first, first - counts["l2_hits"]
