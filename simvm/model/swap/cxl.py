"""A tier of CXL memory: cold pages move there, and come back when they are touched.

Demotion and promotion each cost a migration of a 4 KiB page, CPU time of whoever does it;
there is no queue and no wait. A demoted page is mapped nowhere, and the fault that its
first touch takes promotes it, as with NUMA hinting faults.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simvm.model.swap.base import Free, Run, SwapDevice, Wait

if TYPE_CHECKING:
    from simvm.hardware import Costs
    from simvm.model.clock import Clock
    from simvm.scenario import CxlSwap


class Cxl(SwapDevice):
    """Slower memory beside RAM, whose pages are its slots."""

    def __init__(self, env: Clock, settings: CxlSwap, costs: Costs) -> None:
        super().__init__(env, settings.size, costs.slat_fault_4k_ns)
        self._migrate_ns = costs.migrate_4k_ns

    def write(self, run: Run, free: Free) -> int:
        super().write(run, free)
        free(list(run.frames))
        return len(run.slots) * self._migrate_ns

    def read(self, slot: int) -> Wait:
        return Wait(self._migrate_ns, 0)
