"""What happens when host memory runs short: kswapd, direct reclaim, the OOM killer.

Below the low watermark kswapd runs until free memory is above the high one; below min a
fault reclaims on its own time. A victim goes out whole if the swap device has room for it
in one piece, else it is split. Every look at an accessed bit, every unmapping and every
shootdown is charged to the host core it runs on. That nothing is left to reclaim is a
result: the largest guest is killed, and the run goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from simvm.hardware.geometry import PAGE
from simvm.model.policies import POLICIES, Decision
from simvm.model.queues import Process
from simvm.model.swap import Run

if TYPE_CHECKING:
    from simvm.model.guest import Guest
    from simvm.model.host import Host
    from simvm.model.vcpu import VirtualCpu

MAX_RETRIES = 16  # MAX_RECLAIM_RETRIES, mm/internal.h
MARGIN = 16 * PAGE  # beyond the min watermark: what one fault may take, its tables included


class Reclaimer:
    """The host's reclaim: one policy that decides, one set of hands that acts."""

    def __init__(self, host: Host) -> None:
        settings = host.settings.reclaim
        self._host = host
        self._memory = host.memory
        self._flush_when_young = settings.aging_flush == "flush"
        self._policy = POLICIES[settings.policy]() if settings.policy != "none" else None
        if self._policy is not None:
            self._memory.new_list = self._policy.new_list
        self._awake = False
        self._wake = host.env.event()
        self.kswapd_ns = 0
        self.folios_scanned = 0
        self.folios_reclaimed = 0
        if self._policy is not None:
            host.env.process(self._kswapd())

    def check_watermarks(self) -> None:
        """Wake kswapd when free memory has fallen below the low watermark."""
        if not self._awake and self._host.free_bytes < self._host.low_bytes:
            self._awake = True
            self._host.set_watermarks(kswapd_awake=True)
            self._wake.succeed()

    def refault_list(self, slot: int) -> tuple[int, bool]:
        """Where a page that was swapped out goes, and whether it was of the working set."""
        assert self._policy is not None
        distance = self._host.swap.refault_distance(slot)
        if distance <= self._policy.working_set_pages(self._memory):
            return self._policy.refault_list, True
        return self._policy.new_list, False

    def direct(self, vcpu: VirtualCpu) -> Process:
        """Reclaim on a vCPU's time until a fault can go on; whether it now can."""
        host = self._host
        enough = host.min_bytes + max(host.min_bytes // 4, MARGIN)
        tries = 0
        while host.free_bytes < enough and tries < MAX_RETRIES:
            yield from vcpu.enter_core()
            reclaimed, cost = self._shrink()
            yield from vcpu.spend_on_reclaim(host.env.timeout(cost))
            if host.free_bytes < enough and host.swap.writeback_bytes:
                vcpu.leave_core()
                yield from vcpu.spend_on_reclaim(host.swap.writes_done)
            elif not reclaimed:
                tries += 1
        return host.free_bytes >= host.min_bytes + MARGIN

    def out_of_memory(self) -> Guest | None:
        """Kill the guest that holds most memory."""
        victim = self._host.largest_guest()
        if victim is not None:
            self._host.oom_kills += 1
            victim.kill("killed by the host's OOM killer", oom=True)
        return victim

    def _kswapd(self) -> Process:
        host = self._host
        while True:
            if not self._awake:
                yield self._wake
                self._wake = host.env.event()
            idle = 0
            while host.free_bytes < host.high_bytes and idle < MAX_RETRIES:
                if host.free_bytes + host.swap.writeback_bytes < host.high_bytes:
                    core = yield from host.cores.acquire()
                    reclaimed, cost = self._shrink()
                    yield host.env.timeout(cost)
                    self.kswapd_ns += cost
                    host.cores.release(core)
                    idle = 0 if reclaimed else idle + 1
                else:
                    yield host.swap.writes_done
            if idle:
                # Nothing to take for now: leave it to direct reclaim, look again later.
                yield host.env.timeout(host.costs.timeslice_ns)
            self._awake = False
            host.set_watermarks(kswapd_awake=False)

    def _shrink(self) -> tuple[int, int]:
        """One batch of reclaim: progress (pages; folios aged or split), and its CPU time in ns."""
        memory, costs = self._memory, self._host.costs
        if self._policy is None:
            return 0, costs.reclaim_scan_ns
        split, freed = memory.split_partial(self._policy.new_list, 1)
        if split:
            return freed // PAGE, costs.thp_split_ns
        if not self._host.swap.has_room:
            return 0, costs.reclaim_scan_ns
        decision = self._policy.choose(memory)
        self.folios_scanned += decision.scanned
        cost = decision.scanned * costs.reclaim_scan_ns
        for which, folios in decision.moves:
            memory.move(folios, which)
        hit: dict[int, Guest] = {}
        if self._flush_when_young:
            self._collect_owners(decision, hit)
        pages = 0
        for folio in decision.evict:
            evicted, spent = self._evict(folio, hit)
            pages += evicted
            cost += spent
        for guest in hit.values():
            cost += guest.shoot_down()
        return pages + len(decision.young), max(1, cost)

    def _collect_owners(self, decision: Decision, hit: dict[int, Guest]) -> None:
        for folio in decision.young:
            owner, address = self._memory.owner_of(folio)
            hit[owner] = self._host.guests[owner]
            hit[owner].invalidate(address, PAGE << (9 * self._memory.order_of(folio)))

    def _evict(self, folio: int, hit: dict[int, Guest]) -> tuple[int, int]:
        """Unmap a folio and send it to the swap device, or split it: progress, and ns."""
        host, memory, costs = self._host, self._memory, self._host.costs
        order = memory.order_of(folio)
        owner, address = memory.owner_of(folio)
        guest = host.guests[owner]
        size = PAGE << (9 * order)
        slot = host.swap.slot_for(order)
        if slot is None and order == 0:
            memory.move([folio], memory.new_list)
            return 0, 0
        hit[owner] = guest
        guest.note_backed()
        guest.invalidate(address, size)
        guest.host_splits += order
        if slot is None:
            memory.split(folio, memory.new_list)
            return 1, costs.thp_split_ns  # progress: its pages can be taken one by one
        frame = memory.address_of(folio)
        memory.swap_out(folio, slot)
        guest.note_backed()
        guest.swap_outs += size // PAGE
        self.folios_reclaimed += 1
        pages = range(size // PAGE)
        slots = [slot + page for page in pages]
        run = Run(slots, [frame + page * PAGE for page in pages], guest.content, address)
        spent = host.swap.write(run, self._free)
        return size // PAGE, spent + (costs.zap_2m_ns if order else costs.zap_4k_ns)

    def _free(self, frames: list[int]) -> None:
        self._memory.frames.free_many(np.array(frames, dtype=np.uint64))

