"""How long the host takes to back a page at first touch, against the measurement it comes from.

The costs of a SLAT fault and the rate of zeroing were taken from these figures, so the rows are
calibrated: they show that a whole simulation, with its locks and its trains of faults, gives back
what was put in.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

from simvm.validation import scenarios
from simvm.validation.rows import Published, Row, basis


def fault_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """Mean time of a fault in µs, its wait for locks included; all sizes are full."""
    for row in published["rows"]:
        (guest,) = scenarios.run(published["scenario"], row.get("variant")).summary["guests"]
        (phase,) = guest["phases"]
        spent = phase["parts"]["fault_wait_ns"] + phase["parts"]["fault_service_ns"]
        faults = -(-phase["accesses"] // row["accesses_per_fault"])
        target = f"time in us of a SLAT fault that backs {row['page']}, skylake_sp"
        yield Row(target, row["us"], spent / faults / 1000, basis(published, row))
