"""A tier of CXL memory: cold pages move there, and come back or stay when they are touched.

Demotion and promotion each cost a migration of a 4 KiB page, CPU time of whoever does it;
there is no queue and no wait. A demoted page is mapped nowhere, and its first touch takes a
fault. With `access = "promote"` that moves it back, as NUMA hinting faults do. With
`"in_place"` it maps the page where it lies, from then on outside reclaim's lists.

An access to a page that is used in place takes longer when it misses the caches. The core
has no latency of single accesses, so `InPlace` estimates how many go there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from simvm.hardware.geometry import PAGE
from simvm.model.swap.base import Free, Run, SwapDevice, Wait

if TYPE_CHECKING:
    from simvm import _core
    from simvm.hardware import Costs
    from simvm.model.clock import Clock
    from simvm.scenario import CxlSwap

SAMPLES = 16    # accesses drawn to estimate where those of a slice went


class Cxl(SwapDevice):
    """Slower memory beside RAM, whose pages are its slots.

    With `tier`, slots are frames there, and stay where they are.
    """

    def __init__(
        self, env: Clock, settings: CxlSwap, costs: Costs, tier: _core.BlockAllocator | None
    ) -> None:
        super().__init__(env, settings.size, costs.slat_fault_4k_ns)
        self._migrate_ns = costs.migrate_4k_ns
        self._in_place = tier is not None
        if tier is not None:
            self.slots = tier
        self._staying: set[int] = set()     # just mapped where they lie

    def write(self, run: Run, free: Free) -> int:
        super().write(run, free)
        free(list(run.frames))
        return len(run.slots) * self._migrate_ns

    def read(self, slot: int) -> Wait:
        return Wait(self._migrate_ns, 0)

    def take_back(self, slot: int) -> int | None:
        if not self._in_place:
            return None
        self._staying.add(slot)
        return slot * PAGE

    def free_slots(self, slots: Sequence[int]) -> None:
        for slot in slots:
            if slot in self._staying:
                self._staying.remove(slot)
                del self._stamps[slot]
            else:
                super().free_slots([slot])


class InPlace:
    """The extra latency of one thread's accesses to slower memory, estimated by drawing.

    A second stream of the same pattern, with draws of its own, says what share of the
    accesses lies there now; every access of the slice counts with that share. The estimate
    has no bias for patterns that do not depend on time, and is noisy in a single slice.
    """

    def __init__(self, stream: _core.Stream, extra_ns: int) -> None:
        self._stream = stream
        self._extra_ns = extra_ns
        self._done = 0
        self._rest = 0      # ns / SAMPLES that are yet to be charged

    def ns(
        self, done: int, base: int, backing: _core.Backing, guest: _core.PageTable | None
    ) -> int:
        """What the accesses up to `done` took longer since the last call."""
        new, self._done = done - self._done, done
        if not backing.tiered_pages or not new:
            return 0
        found = backing.count_tiered(base, self._stream.take(SAMPLES), guest)
        ns, self._rest = divmod(self._rest + new * found * self._extra_ns, SAMPLES)
        return ns
