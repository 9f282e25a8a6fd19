"""The guest's hints of pvmemcontrol (RFC of 2024): one synchronous call per range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from simvm.model.channels.none import NoChannel
from simvm.model.queues import Process

if TYPE_CHECKING:
    from simvm.model.guest import Guest
    from simvm.model.vcpu import VirtualCpu


class Passthrough(NoChannel):
    """SET_VMA_ANON_NAME when a region is made, DONTNEED when memory is freed.

    The VMM passes a call on as madvise or prctl on its own mapping of guest memory.
    """

    def named(self, vcpu: VirtualCpu, guest: Guest) -> Process:
        guest.hint_calls += 1
        vcpu.exit_to_host()
        yield from vcpu.spend(("hint_ns", guest.host.costs.hint_call_ns))

    def freed(
        self, vcpu: VirtualCpu, guest: Guest, extents: Sequence[tuple[int, int]]
    ) -> Process:
        for start, length in extents:
            guest.hint_calls += 1
            vcpu.exit_to_host()
            wait = guest.mmu_lock.wait(guest.host.env.now)
            cost = guest.zap(start, length)
            yield from vcpu.spend(("hint_ns", wait + guest.host.costs.hint_call_ns + cost))
