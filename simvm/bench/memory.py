"""Real memory that the simulator takes for each simulated page that a host backs.

A guest with lazily backed 1 GiB pages writes all its memory, once over 4 KiB and once over
2 MiB host pages, each in a process of its own; what the process has grown by is shared out
over the pages. The peak is the most that it had grown by at any time, for each GiB that is
backed. What is there before a page is backed, such as the program itself, is left out.
Linux only: other systems do not tell a process its present size.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from simvm.child import run_module
from simvm.core_check import load_core
from simvm.errors import UsageError
from simvm.hardware.geometry import ORDER_BYTES
from simvm.provenance import peak_rss_bytes
from simvm.units import GIB
from simvm.validation.machine import Machine

if TYPE_CHECKING:
    from simvm.bench import Progress

_STATM: Final = Path("/proc/self/statm")
_SIZES: Final = (("4k", 0), ("2m", 1))
_FOOTPRINTS: Final = (4 * GIB, 256 * GIB)
"""By the order of the host's leaf: enough pages to outweigh what grows by the way."""


def measure(progress: Progress | None) -> dict[str, float]:
    """Bytes for each backed page, and at most for each backed GiB, by the size of the page."""
    if not _STATM.exists():
        raise UsageError("bench measures memory on Linux only: use --only core")
    each, peaks = {}, {}
    for done, (name, order) in enumerate(_SIZES):
        if progress is not None:
            progress(f"memory of {name} pages", done, len(_SIZES))
        grown, peak, pages = _in_child(order)
        each[f"bytes_per_backed_{name}_page"] = grown / pages
        peaks[f"peak_bytes_per_backed_gib_at_{name}"] = peak / (pages * ORDER_BYTES[order] / GIB)
    return each | peaks


def _in_child(order: int) -> tuple[int, int, int]:
    grown, peak, pages = run_module(__name__, str(order))
    return int(grown), int(peak), int(pages)


def _resident_bytes() -> int:
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def _grow(order: int) -> tuple[int, int, int]:
    """Bytes by which this process grows while a guest's memory is backed, at most, and pages."""
    machine = Machine(load_core(), _FOOTPRINTS[order], 2, order)
    before = _resident_bytes()
    vcpu = machine.populate(ORDER_BYTES[order])
    after, peak = _resident_bytes(), peak_rss_bytes()
    return after - before, (peak or after) - before, int(vcpu.slat_faults[order])


if __name__ == "__main__":
    print(json.dumps(_grow(int(sys.argv[1]))))
