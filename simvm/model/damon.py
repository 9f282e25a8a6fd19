"""The thread that samples accesses and pages out what is cold: kdamond as DAMON_RECLAIM runs it.

It looks at A bits, one page of each region; a look is charged to a host core like one of
reclaim. It pages out while memory is neither plenty nor short; when it is short the lists do
what they always do. How good its picture is can be seen beside the truth, which it cannot
see: of the accesses that programs are about to make, at each sample of the timeline, so many
lie in regions that it takes for hot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from simvm.model.policies.damon import FreeShare, Monitor, Quota, Ranges, Region
from simvm.model.queues import Process
from simvm.workload.patterns import random_bits

if TYPE_CHECKING:
    from simvm.model.guest import Guest
    from simvm.model.host import Host
    from simvm.scenario.reclaim import DamonReclaim

_NONE = np.empty(0, dtype=np.uint64)


class Watched:
    """A guest, what DAMON knows of it, and the pages under look."""

    def __init__(self, guest: Guest, settings: DamonReclaim) -> None:
        seed = guest.scenario.scenario.seed
        self.guest = guest
        self.monitor = Monitor(
            settings, np.random.Generator(random_bits(seed, f"{guest.name}/damon"))
        )
        self.picked = _NONE

    def ranges(self) -> Ranges:
        """Guest-physical memory, or a container's regions."""
        if self.guest.is_vm:
            return ((0, self.guest.config.memory),)
        cores = (region.core for region in self.guest.regions.values())
        return tuple(sorted((core.base, core.base + core.size) for core in cores))


class Damon:
    """kdamond: its host CPU time, and what it paged out."""

    def __init__(self, host: Host, settings: DamonReclaim) -> None:
        self._host = host
        self._settings = settings
        self._watched: dict[int, Watched] = {}
        self._quota = Quota(settings)
        self._share = FreeShare(settings)
        self._flush = settings.aging_flush == "flush"
        self._began = 0         # the aggregation
        self._ready = False     # whether one is complete
        self.spent_ns = 0
        self.reclaimed_bytes = 0
        if host.settings.backing != "hugetlb":
            host.env.process(self._run())

    def _run(self) -> Process:
        host, settings = self._host, self._settings
        while True:
            if not self._share.allow(host.free_bytes, host.settings.memory):
                self._forget_looks()
                yield host.env.timeout(settings.check_interval)
                self._began = host.env.now
                continue
            core = yield from host.cores.acquire()
            yield from self._spend(self._look())
            if host.env.now - self._began >= settings.aggregation_interval:
                yield from self._aggregate()
            host.cores.release(core)
            yield host.env.timeout(settings.sample_interval)

    def _spend(self, ns: int) -> Process:
        """On the core that it is on."""
        yield self._host.env.timeout(ns)
        self.spent_ns += ns

    def _forget_looks(self) -> None:
        for watched in self._watched.values():
            watched.picked = _NONE

    def _look(self) -> int:
        """See which of the pages picked last were accessed, and pick others; ns."""
        living = self._host.guests
        for owner in [each for each in self._watched if each not in living]:
            del self._watched[owner]
        looks = cost = 0
        for owner, guest in living.items():
            if owner not in self._watched:
                self._watched[owner] = Watched(guest, self._settings)
                self._watched[owner].monitor.watch(self._watched[owner].ranges())
            watched = self._watched[owner]
            if watched.picked.size:
                watched.monitor.note(guest.backing.was_accessed(watched.picked))
            picked = watched.monitor.pick()
            young = guest.backing.note_old(picked)
            looks += watched.picked.size + picked.size
            if self._flush and young.any():
                for address in picked[young].tolist():
                    guest.invalidate(address, 1)
                cost += guest.shoot_down()
            watched.picked = picked
        return looks * self._host.costs.reclaim_scan_ns + cost

    def _aggregate(self) -> Process:
        for watched in list(self._watched.values()):
            watched.monitor.merge()
            yield from self._page_out(watched)
            if watched.guest.alive:
                watched.monitor.watch(watched.ranges())
            watched.monitor.begin()
            watched.picked = _NONE
        self._began = self._host.env.now
        self._ready = True

    def _page_out(self, watched: Watched) -> Process:
        """Cold regions, as far as the quota goes."""
        now = self._host.env.now
        for region in watched.monitor.cold():
            left = self._quota.left(now)
            if left <= 0 or not watched.guest.alive or not self._host.swap.has_room:
                return
            if region.size > left:
                watched.monitor.cut(region, left)
            yield from self._page_out_region(watched.guest, region)

    def _page_out_region(self, guest: Guest, region: Region) -> Process:
        folios = guest.backing.folios(region.start, region.end)
        pages, cost = self._host.reclaimer.page_out(folios)
        self.reclaimed_bytes += pages << 12
        self._quota.charge(region.size, cost)
        region.age = 0
        yield from self._spend(cost)

    def compare(self, guest: Guest) -> int:
        """Hold what is known of a guest to what its programs do next: bytes taken for hot."""
        watched = self._watched.get(guest.owner)
        if watched is None or not self._ready or not guest.alive:
            return 0
        for work in guest.works:
            ahead = work.region.core.locate(work.stream.ahead(), work.space.table)
            guest.damon_probes += ahead.size
            guest.damon_hits += watched.monitor.are_hot(ahead)
        return watched.monitor.hot_bytes()
