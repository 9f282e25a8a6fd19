"""Real memory that the simulator takes for each simulated page that a host backs.

A guest with lazily backed 1 GiB pages writes all its memory, once over 4 KiB and once over
2 MiB host pages, each in a process of its own; what the process has grown by is shared out
over the pages. What is there before a page is backed, such as the program itself, is left
out. Linux only: other systems do not tell a process its present size.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import simvm
from simvm.core_check import load_core
from simvm.errors import SimulationFailed, UsageError
from simvm.hardware.geometry import ORDER_BYTES
from simvm.units import GIB
from simvm.validation.machine import Machine

if TYPE_CHECKING:
    from simvm.bench import Progress

_STATM: Final = Path("/proc/self/statm")
_MEASURES: Final = (("bytes_per_backed_4k_page", 0), ("bytes_per_backed_2m_page", 1))
_FOOTPRINTS: Final = (4 * GIB, 256 * GIB)
"""By the order of the host's leaf: enough pages to outweigh what grows by the way."""


def measure(progress: Progress | None) -> dict[str, float]:
    """Bytes for each backed page, by its size."""
    if not _STATM.exists():
        raise UsageError("bench measures memory on Linux only: use --only core")
    found = {}
    for done, (name, order) in enumerate(_MEASURES):
        if progress is not None:
            progress(name, done, len(_MEASURES))
        found[name] = _in_child(order)
    return found


def _in_child(order: int) -> float:
    root = str(Path(simvm.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    child = subprocess.run(
        [sys.executable, "-m", "simvm.bench.memory", str(order)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        raise SimulationFailed(f"the process that measures memory failed: {child.stderr[-500:]}")
    grown, pages = json.loads(child.stdout)
    return float(grown / pages)


def _resident_bytes() -> int:
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def _grow(order: int) -> tuple[int, int]:
    """Bytes that this process grows by while a guest's memory is backed, and the pages."""
    machine = Machine(load_core(), _FOOTPRINTS[order], 2, order)
    before = _resident_bytes()
    vcpu = machine.populate(ORDER_BYTES[order])
    return _resident_bytes() - before, int(vcpu.slat_faults[order])


if __name__ == "__main__":
    print(json.dumps(_grow(int(sys.argv[1]))))
