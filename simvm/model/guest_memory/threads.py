"""Threads of the guest's kernel that write memory, and who may pay for reclaim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import simpy

from simvm.hardware.geometry import PAGE
from simvm.model.kernel_threads import KernelThread
from simvm.model.queues import Process
from simvm.model.vcpu import VirtualCpu

if TYPE_CHECKING:
    from simvm.model.guest import Guest

OFF_CORE = ("fault_wait_ns", "swap_in_ns", "core_wait_ns")
"""Parts of an account in which no CPU time of the thread goes by."""


def busy_ns(vcpu: VirtualCpu) -> int:
    """CPU time that has gone by on what a thread runs on."""
    parts = vcpu.account.parts()
    return sum(ns for part, ns in parts.items() if part not in OFF_CORE)


class Payer(Protocol):
    """Who pays for CPU time, and waits for a device."""

    def spend(self, ns: int) -> Process:
        """Let `ns` of CPU time pass."""
        ...

    def wait(self, event: simpy.Event) -> Process:
        """Let time pass off the core until an event."""
        ...


class GuestThread(KernelThread):
    """A kernel thread that writes guest memory, which the host may have to back for it.

    Its faults are counted with those of the guest, and its time is no part of a phase.
    """

    def __init__(self, guest: Guest) -> None:
        super().__init__(guest)
        self.vcpu = VirtualCpu(guest, -1)
        guest.mm.threads.append(self)

    def write(self, pages: Sequence[int], size: int = PAGE) -> Process:
        """Write the pages of `size` bytes at these guest-physical addresses."""
        before = busy_ns(self.vcpu)
        try:
            for page in pages:
                yield from self.vcpu.write_by_kernel(page, size)
        finally:
            self.vcpu.leave_core()
            self._guest.kernel_thread_ns += busy_ns(self.vcpu) - before
