"""Hit ratios of TLBs under independent draws, against the laws of their replacement.

Accesses are draws of a Zipf or uniform distribution, made and translated by the core. A
fully associative TLB alone shows the policy; the second levels of the shipped CPUs show the
sets. Left out: a law for tree-PLRU under Zipf, for which none is published.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from simvm.hardware import load_cpu, names
from simvm.hardware.geometry import PAGE, MmuGeometry, TlbArray
from simvm.validation.laws import Probabilities, set_lru_hits, zipf
from simvm.validation.machine import Machine
from simvm.validation.rows import Published, Row, basis, sized
from simvm.workload.patterns import random_bits, scatter_multiplier, zipf_slots

_ACCESSES = 2_000_000
_WARMUP_PER_ENTRY = 20


def hit_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """One fully associative array; a fifth of the accesses when not at full size."""
    for number, row in enumerate(published["rows"]):
        pages, entries, policy = row["pages"], row["entries"], row.get("policy", "lru")
        geometry = MmuGeometry(l1_load=(TlbArray((0,), entries, entries, policy),))
        stream = _stream(core, pages, row["zipf"], random_bits(number, "cache laws"))
        hits = _hits(core, geometry, pages, entries, stream, full)
        name = f"{_pattern(row['zipf'])}, {pages} pages, {entries} entries"
        target = f"{policy.upper()} hit ratio, {name}"
        yield Row(target, row["hits"], hits, basis(published, row))


def set_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """The second level of each CPU, alone and with true LRU, for 4 KiB pages.

    Two banks that hold 4 KiB are one array of twice the sets. A fifth of the accesses when
    not at full size.
    """
    for number, row in enumerate(published["rows"]):
        pages, exponent = row["pages"], row["zipf"]
        for cpu in names():
            arrays = tuple(
                replace(array, policy="lru")
                for array in load_cpu(cpu).geometry.l2
                if 0 in array.orders
            )
            entries, ways = sum(array.entries for array in arrays), arrays[0].ways
            stream = _stream(core, pages, exponent, random_bits(number, f"set laws {cpu}"))
            hits = _hits(core, MmuGeometry(l2=arrays), pages, entries, stream, full)
            expected = set_lru_hits(_by_page(pages, exponent), entries // ways, ways)
            shape = f"{entries} entries of {ways} ways"
            target = f"LRU hit ratio, {_pattern(exponent)}, {pages} pages, L2 of {cpu}, {shape}"
            stands_on = basis(published, row, inputs=[f"cpu.{cpu}.l2"])
            yield Row(target, expected, hits, stands_on)


def _pattern(exponent: float) -> str:
    return f"zipf {exponent:g}" if exponent else "uniform"


def _stream(core: ModuleType, pages: int, exponent: float, bits: np.random.PCG64) -> Any:
    if not exponent:
        return core.Stream.uniform(bits, pages * PAGE)
    slots, scatter = zipf_slots(pages, exponent), scatter_multiplier(pages)
    return core.Stream.zipf(bits, pages * PAGE, slots, scatter)


def _by_page(pages: int, exponent: float) -> Probabilities:
    """How likely `_stream` is to access each page, by page number."""
    scattered = np.arange(pages) * (scatter_multiplier(pages) if exponent else 1) % pages
    p = np.empty(pages)
    p[scattered] = zipf(pages, exponent)
    return p


def _hits(
    core: ModuleType, geometry: MmuGeometry, pages: int, entries: int, stream: Any, full: bool
) -> float:
    """Share of accesses that hit a TLB, once it is full."""
    machine = Machine(core, pages * PAGE, None, 0)
    vcpu = machine.vcpu(geometry)
    machine.run(vcpu, stream, _WARMUP_PER_ENTRY * entries)
    counts = machine.counted(vcpu, stream, sized(full, _ACCESSES))
    return (counts["l1_hits"] + counts["l2_hits"]) / counts["accesses"]
