"""A guest's memory cgroup: limits that it is held to, and protection from the host's reclaim.

Linux' memory controller (mm/memcontrol.c, Documentation/admin-guide/cgroup-v2.rst) for one
guest. Its pages are on lists of its own. Above `max` a fault reclaims within the guest, and
if that gives nothing the guest is killed; above `high` it does the same after its faults, and
sleeps the longer the farther it is above. Reclaim for the host leaves a guest alone that
holds less than `min`, and one that holds less than `low` unless nothing else is left.

Counted is guest memory that is backed, merged pages and what lies on CXL included; Linux counts a
merged page once for all that share it, and page tables and the VMM's own memory too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simvm.hardware.geometry import PAGE
from simvm.model.cgroups import Cgroup
from simvm.model.policies import CLUSTER_PAGES
from simvm.model.queues import Process

if TYPE_CHECKING:
    from simvm.model.guest import Guest
    from simvm.model.host import Host
    from simvm.model.vcpu import VirtualCpu

RETRIES = 16                    # MAX_RECLAIM_RETRIES, mm/internal.h
CHARGE_BATCH = 64               # MEMCG_CHARGE_BATCH, include/linux/memcontrol.h: pages
LONGEST_DELAY = 2_000_000_000   # MEMCG_MAX_HIGH_DELAY_JIFFIES: 2 s, in ns
SHORTEST_DELAY = 10_000_000     # below HZ / 100 a guest does not sleep, in ns


def high_delay(usage: int, high: int, pages: int) -> int:
    """How long a guest sleeps that has `usage` above `high` and took `pages` more, in ns.

    One second for each 2^14 of the square of the overage (in 2^20ths), by the pages over a
    batch: `calculate_high_delay`, mm/memcontrol.c.
    """
    overage = (max(0, usage - high) << 20) // max(high, 1)
    second = 1_000_000_000
    return min((overage * overage * second >> 34) * pages // CHARGE_BATCH, LONGEST_DELAY)


class Memcg(Cgroup):
    """The group of one guest, with its limits."""

    def __init__(self, host: Host, guest: Guest) -> None:
        super().__init__(host, host.memory.add_group())
        assert guest.config.memcg is not None
        limits = guest.config.memcg
        self._host = host
        self._guest = guest
        self._max, self._high = limits.max, limits.high
        self._min, self._low = limits.min, max(limits.low, limits.min)

    @property
    def limit(self) -> int:
        """What the core holds faults to, in bytes; 0: nothing."""
        return self._max or 0

    @property
    def _usage(self) -> int:
        guest = self._guest     # what the core counts when it holds a fault to `limit`
        return guest.backed_bytes + guest.merged_bytes + guest.tier_bytes

    def is_protected(self, strictly: bool) -> bool:
        return self._usage <= (self._min if strictly else self._low)

    def is_full(self) -> bool:
        return self._max is not None and self._usage + PAGE > self._max

    def make_room(self, vcpu: VirtualCpu) -> Process:
        """Reclaim within the guest until a batch fits below `max`; whether a page now fits."""
        assert self._max is not None
        tries = 0
        while self._usage + CLUSTER_PAGES * PAGE > self._max and tries < RETRIES:
            reclaimed = yield from self._reclaim(vcpu)
            tries += not reclaimed
        return not self.is_full()

    def after_faults(self, vcpu: VirtualCpu, pages: int) -> Process:
        if self._high is not None and self._usage > self._high:
            with vcpu.stalls.stalled():
                yield from self._come_down(vcpu, self._high, pages)

    def _come_down(self, vcpu: VirtualCpu, high: int, pages: int) -> Process:
        """Reclaim what was taken, then as long as it helps; then sleep."""
        tries = 0
        taken = pages
        while self._usage > high and tries < RETRIES:
            reclaimed = yield from self._reclaim(vcpu)
            taken -= reclaimed
            if taken > 0 and reclaimed:
                continue
            delay = high_delay(self._usage, high, pages)
            if delay <= SHORTEST_DELAY:
                return
            tries += not reclaimed
            if tries == RETRIES:
                vcpu.leave_core()
                self._guest.throttled_ns += delay
                yield from vcpu.spend(("fault_wait_ns", delay))

    def _reclaim(self, vcpu: VirtualCpu) -> Process:
        """A batch, on the vCPU's time: the progress that it made."""
        host = self._host
        yield from vcpu.enter_core()
        reclaimed, cost = host.reclaimer.shrink_group(self)
        yield from vcpu.spend_on_reclaim(host.env.timeout(max(1, cost)))
        return reclaimed
