"""Free page reporting: a worker of the guest's kernel tells the host of large free blocks.

Linux, mm/page_reporting.c and drivers/virtio/virtio_balloon.c. A free of a large block asks for
a pass, which begins `delay` later. A pass goes through the zones and, in each, through the free
lists from `order` up. From each list it takes free blocks that are not marked as reported, up
to `batch` in a message, waits until the VMM has discarded them (MADV_DONTNEED), and puts them
back with the mark. A list's budget is `nr_free / (batch * budget)`, rounded up, and one message
more; `nr_free` counts marked blocks too. What is left over asks for another pass, whose delay
begins when this one has ended. A zone that is short of memory is passed over.

Left out: lists of whole blocks by migrate type (every one is on one list, as movable ones are);
orders below 9 are not reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import simpy

from simvm.hardware.geometry import BLOCK
from simvm.model.channels.none import NoChannel
from simvm.model.guest_memory.zones import Zone, zones_of
from simvm.model.kernel_threads import KernelThread
from simvm.model.queues import Process
from simvm.model.timer_wheel import wait_ns

if TYPE_CHECKING:
    from simvm.model.guest import Guest
    from simvm.model.vcpu import VirtualCpu
    from simvm.scenario.channels import FreePageReportingChannelSettings

LOWEST_ORDER = 9  # of a single block of 2 MiB; a pair is one order more


class FreePageReporting(NoChannel):
    """One guest's reporting: its worker in the guest and its thread in the VMM."""

    settings: FreePageReportingChannelSettings

    def __init__(self, settings: FreePageReportingChannelSettings) -> None:
        super().__init__(settings)
        self._requested = True  # a device that registers asks for a first pass
        self._request: simpy.Event | None = None
        self._blocks_freed = 0
        self._orders = range(settings.order - LOWEST_ORDER, 2)

    def freed(
        self, vcpu: VirtualCpu, guest: Guest, extents: Sequence[tuple[int, int]]
    ) -> Process:
        """Costs the vCPU nothing: the worker is asked for a pass if a large block got free."""
        yield from ()
        self.reclaimed(guest)

    def reclaimed(self, guest: Guest) -> None:
        """As when a program frees: a cache that shrinks leaves whole blocks behind."""
        if guest.memory.blocks_freed != self._blocks_freed:
            self._blocks_freed = guest.memory.blocks_freed
            self._ask()

    def _ask(self) -> None:
        self._requested = True
        if self._request is not None and not self._request.triggered:
            self._request.succeed()

    def serve(self, guest: Guest) -> Process:
        """The worker."""
        env = guest.host.env
        worker, vmm = KernelThread(guest), KernelThread(guest)
        zones = zones_of(guest)
        while True:
            if not self._requested:
                self._request = env.event()
                yield self._request
            wait = wait_ns(env.now, self.settings.delay, self.settings.ticks_per_second)
            yield from worker.sleep(wait)
            self._requested = False
            for zone in zones:
                yield from self._pass(guest, zone, worker, vmm)

    def _pass(self, guest: Guest, zone: Zone, worker: KernelThread, vmm: KernelThread) -> Process:
        """Report what the budgets of a zone's lists allow."""
        memory, batch = guest.memory, self.settings.batch
        enough = zone.marks.low_bytes + batch * (BLOCK << self._orders.start)
        if memory.free_in_zone(zone.lower) <= enough:
            return
        message: list[tuple[int, int]] = []
        for pairs in self._orders:
            listed = memory.free_listed(zone.lower, bool(pairs))
            budget = -(-listed // (batch * self.settings.budget))
            while memory.has_unreported(zone.lower, bool(pairs)):
                if budget < 0:
                    self._requested = True
                    break
                if len(message) == batch:
                    yield from self._report(guest, message, worker, vmm)
                    message = []
                    budget -= 1
                    continue
                spare = memory.free_in_zone(zone.lower) - zone.marks.min_bytes
                most = min(batch - len(message), spare // (BLOCK << pairs) - 1)
                taken = memory.isolate(zone.lower, bool(pairs), most)
                if not taken:
                    break
                message += [(address, pairs) for address in taken]
        if message:
            yield from self._report(guest, message, worker, vmm)

    def _report(
        self, guest: Guest, message: list[tuple[int, int]], worker: KernelThread, vmm: KernelThread
    ) -> Process:
        """One message: the worker sends it and sleeps until the VMM has discarded each block."""
        costs, now = guest.host.costs, guest.host.env.now
        guest.hint_calls += 1
        yield from worker.spend(costs.report_message_ns)
        cost = len(message) * costs.report_block_ns + guest.mmu_lock.wait(now)
        for address, pairs in message:
            cost += guest.zap(address, BLOCK << pairs)
        yield from vmm.spend(cost)
        for address, pairs in message:
            guest.memory.put_back([address], bool(pairs))
