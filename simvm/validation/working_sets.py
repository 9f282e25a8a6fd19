"""Working sets of the access generators, against Denning's laws.

The size is counted by the core, as the pages of a region that are touched in a window of
accesses; the miss rate from the accesses that the same generator yields.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simvm.hardware.geometry import PAGE, MmuGeometry
from simvm.validation.laws import working_set, working_set_misses, zipf
from simvm.validation.machine import Machine
from simvm.validation.rows import Published, Row, basis, sized
from simvm.workload.patterns import random_bits, scatter_multiplier, zipf_slots

_ACCESSES = 2_000_000


def working_set_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """A fifth of the accesses when not at full size."""
    accesses = sized(full, _ACCESSES)
    for number, row in enumerate(published["rows"]):
        pages, window, exponent = row["pages"], row["window"], row["zipf"]
        p = zipf(pages, exponent)
        name = f"{f'zipf {exponent:g}' if exponent else 'uniform'}, {pages} pages, T = {window}"

        stream = _stream(core, pages, exponent, number, "size")
        size = _mean_touched(core, stream, pages, window, accesses)
        target, expected = f"working set in pages, {name}", working_set(p, window)
        yield Row(target, expected, size, basis(published, row))

        stream = _stream(core, pages, exponent, number, "misses")
        drawn = stream.take(accesses) >> np.uint64(13)
        target, expected = f"working-set miss rate, {name}", working_set_misses(p, window)
        misses = _miss_rate(drawn, window)
        yield Row(target, expected, misses, basis(published, row))


def _stream(core: ModuleType, pages: int, exponent: float, number: int, label: str) -> Any:
    bits = random_bits(number, f"working set {label}")
    if not exponent:
        return core.Stream.uniform(bits, pages * PAGE)
    slots, scatter = zipf_slots(pages, exponent), scatter_multiplier(pages)
    return core.Stream.zipf(bits, pages * PAGE, slots, scatter)


def _mean_touched(
    core: ModuleType, stream: Any, pages: int, window: int, accesses: int
) -> float:
    machine = Machine(core, pages * PAGE, None, 0)
    vcpu = machine.vcpu(MmuGeometry.bare())
    touched = 0
    for _ in range(accesses // window):
        machine.forget_touches()
        machine.run(vcpu, stream, window)
        touched += machine.touched_pages
    return touched / (accesses // window)


def _miss_rate(page: NDArray[np.uint64], window: int) -> float:
    """Share of accesses, the first `window` left out, whose page the last `window` lack."""
    order = np.argsort(page, kind="stable")
    again = np.zeros(len(page), dtype=bool)
    again[order[1:]] = (page[order[1:]] == page[order[:-1]]) & (np.diff(order) <= window)
    return float(1 - again[window:].mean())
