"""Compaction: a free block of 2 MiB is made by moving the pages of a broken one elsewhere.

After mm/compaction.c. One scanner goes up from the low end of memory and looks for a block
whose pages can all be moved; another comes down from the high end and finds free pages for
them, in blocks that are broken anyway. An attempt ends when a block has become free, or
when the scanners meet. One that went over all of memory and made none is a failure: the
next attempts are then left out, twice as many after each failure, up to 64.

Who pays: a fault that found no block (`defrag = "direct"`), the thread kcompactd that such a
fault wakes (`"background"`), or khugepaged. Moving a page is its copy, and a fixed part that
unmaps and maps it; TLBs are shot down for each 32 pages.

Left out: proactive compaction, and the lower ranks of effort, at which Linux skips blocks
that a former attempt could not empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simvm.hardware.geometry import BLOCK, PAGE
from simvm.model.pressure import Stalls
from simvm.model.queues import Process

if TYPE_CHECKING:
    from simvm.model.host import Host
    from simvm.model.vcpu import VirtualCpu

CLUSTER = 32            # COMPACT_CLUSTER_MAX, include/linux/compaction.h
MAX_DEFER_SHIFT = 6     # COMPACT_MAX_DEFER_SHIFT


class Compactor:
    """The host's compaction: two scanners, and who they work for."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._blocks = host.memory.frames.size // BLOCK
        self._low, self._high = 0, self._blocks - 1
        self._shift = 0
        self._left_out = 0
        self._wake = host.env.event()
        self.kcompactd_ns = 0
        self.pages_migrated = 0
        self.failures = 0
        self._direct = host.settings.defrag == "direct"
        if host.settings.defrag != "never":
            host.memory.ask_for_block(True)
        if host.settings.defrag == "background":
            host.env.process(self._kcompactd())

    def no_block(self, vcpu: VirtualCpu) -> Process:
        """A fault found no free block: make one on its time, or wake kcompactd."""
        if self._direct:
            yield from vcpu.enter_core()
            _, cost = self.attempt()
            vcpu.guest.direct_compaction_ns += cost
            with vcpu.stalls.stalled():
                yield from vcpu.spend(("fault_service_ns", cost))
        elif not self._wake.triggered:
            self._wake.succeed()

    def attempt(self) -> tuple[bool, int]:
        """Try to make one free block: whether there is one now, and ns of who asked."""
        if not self._suitable() or self._deferred():
            return False, 0
        memory, scan_ns = self._host.memory, self._host.costs.compact_scan_ns
        whole, cost = self._low == 0, 0
        while self._low < self._high:
            block = memory.next_to_empty(self._low, self._high)
            cost += (block - self._low) * scan_ns
            self._low = block + 1
            if block == self._high:
                break
            moved, self._high, freed = memory.empty(block, self._high)
            cost += scan_ns + self._moved(moved)
            if freed:
                self._shift = 0
                return True, cost
        self._low, self._high = 0, self._blocks - 1
        if whole:
            self.failures += 1
            self._shift = min(self._shift + 1, MAX_DEFER_SHIFT)
            self._left_out = 0
        return False, cost

    def _suitable(self) -> bool:
        """Free pages enough to move a block's pages to (`__compaction_suitable`)."""
        return self._host.free_bytes >= self._host.low_bytes + 2 * BLOCK

    def _deferred(self) -> bool:
        """Whether this attempt is left out, after failures (`compaction_deferred`)."""
        self._left_out += 1
        return self._shift > 0 and self._left_out < 1 << self._shift

    def _moved(self, pages: list[tuple[int, int]]) -> int:
        """Tell guests of their pages that moved; what moving took, in ns."""
        host, costs = self._host, self._host.costs
        self.pages_migrated += len(pages)
        copy = PAGE * 1_000_000_000 // costs.copy_bandwidth_bytes_per_s
        cost = len(pages) * (costs.page_migration_ns + copy)
        for first in range(0, len(pages), CLUSTER):
            hit = {}
            for owner, address in pages[first : first + CLUSTER]:
                if owner:
                    hit[owner] = host.guests[owner]
                    hit[owner].invalidate(address, PAGE)
            for guest in hit.values():
                cost += guest.shoot_down()
        return cost

    def _kcompactd(self) -> Process:
        host, stalls = self._host, Stalls(self._host.pressure)
        while True:
            yield self._wake
            with stalls.stalled():
                core = yield from host.cores.acquire()
                _, cost = self.attempt()
                yield host.env.timeout(cost)
                self.kcompactd_ns += cost
                host.cores.release(core)
            stalls.rest()
            self._wake = host.env.event()
