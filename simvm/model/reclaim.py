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

from simvm import _core
from simvm.hardware.geometry import BLOCK, PAGE
from simvm.model.cgroups import Cgroup, in_turn
from simvm.model.damon import Damon
from simvm.model.memcg import Memcg
from simvm.model.policies import CLUSTER_PAGES, Decision
from simvm.model.pressure import Stalls
from simvm.model.proactive import ProactiveReclaim
from simvm.model.queues import Process
from simvm.model.swap import Run
from simvm.scenario.reclaim import DamonReclaim

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from simvm.model.guest import Guest
    from simvm.model.host import Host
    from simvm.model.vcpu import VirtualCpu

MAX_RETRIES = 16  # MAX_RECLAIM_RETRIES, mm/internal.h
MARGIN = 16 * PAGE  # beyond the min watermark: what one fault may take, its tables included
NEW = 0             # the list for new folios, whichever that is in a folio's group


class Reclaimer:
    """The host's reclaim: policies that decide, one set of hands that acts."""

    def __init__(self, host: Host) -> None:
        settings = host.settings.reclaim
        self._host = host
        self._memory = host.memory
        self._flush_when_young = settings.aging_flush == "flush"
        self._works = settings.policy != "none"
        self.look_ns = settings.sample_interval if settings.policy == "damon" else 1 << 62
        """How soon one look at a page's A bit follows another, at the least."""
        self._common = Cgroup(host, 0)
        self._groups = [self._common]
        self._awake = False
        self._wake = host.env.event()
        self.kswapd_ns = 0
        self.aging_ns = 0
        self.folios_scanned = 0
        self.folios_reclaimed = 0
        self.reclaimed_bytes = 0
        self.proactive: ProactiveReclaim | None = None
        if self._works:
            host.env.process(self._kswapd())
        self.damon: Damon | None = None
        if isinstance(settings, DamonReclaim):
            self.damon = Damon(host, settings)
        if settings.proactive is not None:
            self.proactive = ProactiveReclaim(host, settings.proactive)

    # --- who is reclaimed from ----------------------------------------------------------

    def join(self, guest: Guest) -> Cgroup:
        """The group of a guest that starts: its own, or that of all guests without limits."""
        group = self._common
        if guest.config.memcg is not None:
            group = Memcg(self._host, guest)
            self._groups.append(group)
        group.guests[guest.owner] = guest
        return group

    def leave(self, guest: Guest) -> None:
        """The guest has ended."""
        group = guest.cgroup
        del group.guests[guest.owner]
        if group is not self._common:
            self._groups.remove(group)

    def refault_list(self, guest: Guest, slot: int) -> tuple[int, bool]:
        """Where a page that was swapped out goes, and whether it was of the working set."""
        group = guest.cgroup
        if group.policy is None:
            return NEW, False
        distance = self._host.swap.refault_distance(slot)
        if distance <= group.policy.working_set_pages(group.lists):
            return group.policy.refault_list, True
        return NEW, False

    # --- when ---------------------------------------------------------------------------

    def check_watermarks(self) -> None:
        """Wake kswapd when free memory has fallen below the low watermark."""
        if not self._awake and self._host.free_bytes < self._host.low_bytes:
            self._awake = True
            self._host.set_watermarks(kswapd_awake=True)
            self._wake.succeed()

    def direct(self, vcpu: VirtualCpu) -> Process:
        """Reclaim on a vCPU's time until a fault can go on; whether it now can."""
        host = self._host
        enough = host.min_bytes + max(host.min_bytes // 4, MARGIN)
        tries = 0
        while host.free_bytes < enough and tries < MAX_RETRIES:
            yield from vcpu.enter_core()
            reclaimed, cost = self.shrink()
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

    def out_of_limit(self, guest: Guest) -> None:
        """Kill a guest that is at its limit and has nothing to give."""
        self._host.oom_kills += 1
        guest.kill("killed at its memory limit", oom=True)

    def _kswapd(self) -> Process:
        host = self._host
        stalls = Stalls(host.pressure)
        while True:
            if not self._awake:
                yield self._wake
                self._wake = host.env.event()
            idle = 0
            with stalls.stalled():
                while host.free_bytes < host.high_bytes and idle < MAX_RETRIES:
                    if host.free_bytes + host.swap.writeback_bytes < host.high_bytes:
                        core = yield from host.cores.acquire()
                        reclaimed, cost = self.shrink()
                        yield host.env.timeout(cost)
                        self.kswapd_ns += cost
                        host.cores.release(core)
                        idle = 0 if reclaimed else idle + 1
                    else:
                        yield host.swap.writes_done
            stalls.rest()
            if idle:
                # Nothing to take for now: leave it to direct reclaim, look again later.
                yield host.env.timeout(host.costs.timeslice_ns)
            self._awake = False
            host.set_watermarks(kswapd_awake=False)

    # --- what ---------------------------------------------------------------------------

    def shrink(self) -> tuple[int, int]:
        """One batch of reclaim: progress (pages; folios aged or split), and its CPU time in ns."""
        memory, costs = self._memory, self._host.costs
        if not self._works:
            return 0, costs.reclaim_scan_ns
        split, freed = memory.split_partial(NEW, 1)
        self.reclaimed_bytes += freed
        if split:
            return freed // PAGE, costs.thp_split_ns
        if memory.list_bytes(_core.LAZY_LIST):
            return self._drop_lazy(memory.lazy(CLUSTER_PAGES))
        if not self._host.swap.has_room:
            return 0, costs.reclaim_scan_ns
        progress = cost = 0
        for group in self._candidates():
            progress, spent = self.shrink_group(group)
            cost += spent
            if progress:
                break
        return progress, max(1, cost)

    def _candidates(self) -> Iterator[Cgroup]:
        """Groups to try in turn; those with a low protection once the others gave nothing."""
        if len(self._groups) == 1:
            yield from self._groups
            return
        protected = [group for group in self._groups if group.is_protected(strictly=False)]
        yield from in_turn([group for group in self._groups if group not in protected])
        yield from in_turn([group for group in protected if not group.is_protected(strictly=True)])

    def shrink_group(self, group: Cgroup) -> tuple[int, int]:
        """As `shrink`, of one group. A walk through page tables is progress, and takes its time."""
        assert group.policy is not None
        if self._memory.list_bytes(_core.LAZY_LIST):
            lazy = self._memory.lazy(CLUSTER_PAGES, group.lists.group)
            if lazy:
                return self._drop_lazy(lazy)
        if not self._host.swap.has_room:
            return 0, self._host.costs.reclaim_scan_ns
        decision = group.policy.choose(group.lists)
        moved, cost = self._act(group, decision)
        return moved + decision.walk, cost

    def _act(self, group: Cgroup, decision: Decision) -> tuple[int, int]:
        memory, costs = self._memory, self._host.costs
        self.folios_scanned += decision.scanned
        hit: dict[int, Guest] = {}
        if self._flush_when_young:
            self._collect_owners(decision, hit)
        cost = decision.scanned * costs.reclaim_scan_ns
        for which, folios in decision.moves:
            memory.move(folios, which)
        for folio in decision.around:
            looked, young = memory.look_around(folio, decision.young_list)
            cost += looked * costs.age_entry_ns
            if young and self._flush_when_young:
                owner, address = memory.owner_of(folio)
                self._host.guests[owner].invalidate(address // BLOCK * BLOCK, BLOCK)
        if decision.walk:
            cost += self._walk(group, decision.young_list, hit)
        self.aging_ns += cost
        if decision.new_list is not None:
            memory.set_new_list(decision.new_list, group.lists.group)
        pages, spent = self._evict_all(decision.evict, hit)
        return pages + len(decision.young), cost + spent

    def _walk(self, group: Cgroup, young_list: int, hit: dict[int, Guest]) -> int:
        """Harvest the accessed bits of all guests of a group; ns."""
        cost, costs = 0, self._host.costs
        for owner, guest in group.guests.items():
            tables, leaves, young = guest.backing.age(young_list)
            cost += tables * costs.age_table_ns + leaves * costs.age_entry_ns
            if young and self._flush_when_young:
                guest.invalidate_all()
                hit[owner] = guest
        return cost

    def _drop_lazy(self, found: list[tuple[int, bool]]) -> tuple[int, int]:
        """Take what guests freed lazily, without a write, unless it was written since."""
        memory = self._memory
        used = [folio for folio, written in found if written]
        memory.move(used, NEW)
        cost = len(found) * self._host.costs.reclaim_scan_ns
        pages = len(used)
        hit: dict[int, Guest] = {}
        for folio, written in found:
            if not written:
                pages += 1 << 9 * memory.order_of(folio)
                cost += self._drop(folio, hit)
        for guest in hit.values():
            cost += guest.shoot_down()
        self.folios_scanned += len(found)
        return pages, max(1, cost)

    def _drop(self, folio: int, hit: dict[int, Guest]) -> int:
        """Free a folio whose content nobody wants; ns."""
        guest = self._host.guests[self._memory.owner_of(folio)[0]]
        start, end = self._range_of(folio)
        guest.note_backed()
        cost, changes = guest.drop(start, end - start)
        guest.note_backed()
        if changes:
            hit[guest.owner] = guest
        self.folios_reclaimed += 1
        self.reclaimed_bytes += end - start
        return cost

    def _range_of(self, folio: int) -> tuple[int, int]:
        """Where its owner has a folio: start and end."""
        address = self._memory.owner_of(folio)[1]
        return address, address + (PAGE << 9 * self._memory.order_of(folio))

    def _collect_owners(self, decision: Decision, hit: dict[int, Guest]) -> None:
        for folio in decision.young:
            owner, address = self._memory.owner_of(folio)
            hit[owner] = self._host.guests[owner]
            hit[owner].invalidate(address, PAGE << (9 * self._memory.order_of(folio)))

    def page_out(self, folios: Iterable[int]) -> tuple[int, int]:
        """Evict folios, whether accessed or not: 4 KiB pages that went, and ns."""
        before = self.reclaimed_bytes
        _, cost = self._evict_all(folios, {})
        return (self.reclaimed_bytes - before) // PAGE, cost

    def page_out_range(self, backing: _core.Backing, start: int, end: int) -> int:
        """Evict all of a guest's range that is on a list, and what it freed lazily; ns.

        A 2 MiB folio for which the device has no room in one piece is split at first.
        """
        cost = 0
        for _ in range(2):
            folios = backing.folios(start, end)
            cost += len(folios) * self._host.costs.reclaim_scan_ns + self.page_out(folios)[1]
        return cost

    def _evict_all(self, folios: Iterable[int], hit: dict[int, Guest]) -> tuple[int, int]:
        """Evict folios and shoot down who is hit: pages, and ns."""
        pages = cost = 0
        for folio in folios:
            evicted, spent = self._evict(folio, hit)
            pages += evicted
            cost += spent
        for guest in hit.values():
            cost += guest.shoot_down()
        return pages, cost

    def _evict(self, folio: int, hit: dict[int, Guest]) -> tuple[int, int]:
        """Unmap a folio and send it to the swap device, or split it: progress, and ns."""
        host, memory, costs = self._host, self._memory, self._host.costs
        order = memory.order_of(folio)
        owner, address = memory.owner_of(folio)
        guest = host.guests[owner]
        size = PAGE << (9 * order)
        lazy = memory.list_of(folio) == _core.LAZY_LIST
        if lazy and not guest.backing.written(address, address + size):
            return size // PAGE, self._drop(folio, hit)
        slot = host.swap.slot_for(order)
        if slot is None and order == 0:
            memory.move([folio], NEW)
            return 0, 0
        hit[owner] = guest
        guest.note_backed()
        guest.invalidate(address, size)
        guest.life.note_cleared(address, size)
        guest.host_splits += order
        if slot is None:
            memory.split(folio, NEW)
            return 1, costs.thp_split_ns  # progress: its pages can be taken one by one
        frame = memory.address_of(folio)
        memory.swap_out(folio, slot)
        guest.note_backed()
        guest.swap_outs += size // PAGE
        self.folios_reclaimed += 1
        self.reclaimed_bytes += size
        pages = range(size // PAGE)
        slots = [slot + page for page in pages]
        run = Run(slots, [frame + page * PAGE for page in pages], guest.content, address)
        spent = host.swap.write(run, self._free)
        return size // PAGE, spent + (costs.zap_2m_ns if order else costs.zap_4k_ns)

    def _free(self, frames: list[int]) -> None:
        self._memory.frames.free_many(np.array(frames, dtype=np.uint64))
