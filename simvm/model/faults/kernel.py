"""KVM's own path: each vCPU thread serves its own fault.

There is no queue of workers, but there are short serial sections: the zone lock of the page
allocator, held once per fault; and the guest's MMU lock, which an invalidation takes for
writing. A fault that an invalidation overtook is retried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simvm.model.faults.base import begin_anew_if_overtaken
from simvm.model.queues import Process

if TYPE_CHECKING:
    from simvm.model.host import Host
    from simvm.model.vcpu import VirtualCpu


class KernelPath:
    """Each vCPU thread serves its own faults, serialised only by short locks."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def train(self, longest: int) -> int:
        return longest if self._host.zone_lock.is_free(self._host.env.now) else 1

    def serve(self, vcpu: VirtualCpu, faults: int, service: int) -> Process:
        host, guest = self._host, vcpu.guest
        now = host.env.now
        hold = min(service, faults * host.costs.zone_lock_hold_ns)  # a part of the service
        wait = host.zone_lock.reserve(now, hold) + guest.mmu_lock.wait(now)
        seen = guest.invalidations
        yield from vcpu.spend(("fault_wait_ns", wait), ("fault_service_ns", service))
        yield from begin_anew_if_overtaken(vcpu, seen)
