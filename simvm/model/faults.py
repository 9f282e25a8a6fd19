"""Who serves a SLAT fault, and what the vCPU waits for.

* `kernel` (KVM's own path): each vCPU thread serves its own fault. There is no queue of
  workers, but there are short serial sections: the zone lock of the page allocator, held
  once per fault; and the guest's MMU lock, which an invalidation takes for writing. A
  fault that an invalidation overtook is retried.
* `userfaultfd`: the fault goes to one of `fault_workers` threads behind one queue, which
  needs a host core of its own while the vCPU thread sleeps.

Faults taken back to back travel as one train, a request whose service time is their sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from simvm.model.queues import FaultThreads, Process

if TYPE_CHECKING:
    from simvm.model.host import Host
    from simvm.model.vcpu import VirtualCpu


class FaultPath(Protocol):
    """Serves the faults that a vCPU has just taken, on its time."""

    def train(self, longest: int) -> int:
        """How many faults may travel together now."""
        ...

    def serve(self, vcpu: VirtualCpu, faults: int, service: int) -> Process:
        """Let `faults` faults with `service` ns in all be served; charge the vCPU."""
        ...


class KernelPath:
    """Each vCPU thread serves its own faults, serialised only by short locks."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def train(self, longest: int) -> int:
        return 1 if self._host.zone_lock.wait(self._host.env.now) else longest

    def serve(self, vcpu: VirtualCpu, faults: int, service: int) -> Process:
        host, guest = self._host, vcpu.guest
        now = host.env.now
        hold = min(service, faults * host.costs.zone_lock_hold_ns)  # a part of the service
        wait = host.zone_lock.reserve(now, hold) + guest.mmu_lock.wait(now)
        seen = guest.invalidations
        yield from vcpu.spend(("fault_wait_ns", wait), ("fault_service_ns", service))
        if guest.invalidations != seen:
            guest.fault_retries += 1
            yield from vcpu.spend(("fault_service_ns", host.costs.slat_fault_4k_ns))


class UserfaultfdPath:
    """Faults queue for `workers` handler threads; the vCPU sleeps meanwhile."""

    def __init__(self, host: Host, workers: int) -> None:
        self._host = host
        self._threads = FaultThreads(host.env, host.cores, workers)

    def train(self, longest: int) -> int:
        return longest

    def serve(self, vcpu: VirtualCpu, faults: int, service: int) -> Process:
        env = self._host.env
        service += faults * self._host.costs.userfaultfd_extra_ns
        vcpu.leave_core()
        started = env.now
        train = self._threads.submit(faults, service)
        yield train.done
        vcpu.charge("fault_wait_ns", env.now - started - train.served_ns)
        vcpu.charge("fault_service_ns", train.served_ns)
        yield from vcpu.enter_core()


def make_fault_path(host: Host) -> FaultPath:
    """The path that the scenario names."""
    if host.settings.fault_path == "userfaultfd":
        return UserfaultfdPath(host, host.settings.fault_workers)
    return KernelPath(host)
