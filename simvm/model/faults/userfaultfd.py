"""userfaultfd: the fault goes to one of `fault_workers` threads behind one queue.

The vCPU sleeps meanwhile, and the thread needs a host core of its own. What all of them
share is the queue (fs/userfaultfd.c): a fault is put on the list of pending ones, a thread
takes it from there and puts it on the list of faults in service, and who has installed the
page wakes its vCPU. Each step holds the lock of a list, waking included, and finds the lock
and the list's ends in another core's cache: what handling adds to a fault is spent there.
Waking looks for the vCPU by address, along all faults that wait: so the lock is held longer
the more vCPUs fault at once, and beyond a few of them more threads only make it slower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simvm.model.queues import FaultThreads, Process

if TYPE_CHECKING:
    from simvm.model.host import Host
    from simvm.model.vcpu import VirtualCpu


class UserfaultfdPath:
    """Faults queue for handler threads; the vCPU sleeps meanwhile."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._threads = FaultThreads(
            host.env, host.cores, host.settings.fault_workers, self._hold_ns
        )

    def _hold_ns(self, waiting: int) -> int:
        """How long one fault holds the queue's lock while `waiting` others are not served."""
        costs = self._host.costs
        return costs.userfaultfd_extra_ns + waiting * costs.userfaultfd_waiter_ns

    def train(self, longest: int) -> int:
        return longest

    def serve(self, vcpu: VirtualCpu, faults: int, service: int) -> Process:
        env = self._host.env
        vcpu.leave_core()
        started = env.now
        train = self._threads.submit(faults, service)
        yield train.done
        vcpu.charge("fault_wait_ns", env.now - started - train.served_ns)
        vcpu.charge("fault_service_ns", train.served_ns)
        yield from vcpu.enter_core()
