"""Hit ratios of a fully associative TLB with true LRU, against Che's approximation.

Accesses are independent draws of a Zipf or uniform distribution, made and translated by
the core. FIFO and random replacement, for which other laws hold, are not modelled; nor
has the law for sets been compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

from simvm.hardware.geometry import PAGE, MmuGeometry, TlbArray
from simvm.validation.machine import Machine
from simvm.validation.rows import Published, Row, sized
from simvm.workload.patterns import random_bits, scatter_multiplier, zipf_slots

_ACCESSES = 2_000_000
_WARMUP_PER_ENTRY = 20


def hit_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """A fifth of the accesses when not at full size."""
    for number, row in enumerate(published["rows"]):
        pages, entries, exponent = row["pages"], row["entries"], row["zipf"]
        machine = Machine(core, pages * PAGE, None, 0)
        vcpu = machine.vcpu(MmuGeometry(l1_load=(TlbArray((0,), entries, entries),)))
        bits = random_bits(number, "cache laws")
        if exponent:
            slots, scatter = zipf_slots(pages, exponent), scatter_multiplier(pages)
            stream = core.Stream.zipf(bits, pages * PAGE, slots, scatter)
        else:
            stream = core.Stream.uniform(bits, pages * PAGE)
        machine.run(vcpu, stream, _WARMUP_PER_ENTRY * entries)
        before = vcpu.counters()
        machine.run(vcpu, stream, sized(full, _ACCESSES))
        after = vcpu.counters()
        hits = (after["l1_hits"] - before["l1_hits"]) / (after["accesses"] - before["accesses"])
        pattern = f"zipf {exponent:g}" if exponent else "uniform"
        target = f"LRU hit ratio, {pattern}, {pages} pages, {entries} entries"
        source, tolerance = published["source"], published["tolerance"]
        yield Row(target, row["hits"], hits, tolerance, "absolute", source, "predicted")
