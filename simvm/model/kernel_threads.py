"""Threads beside the vCPUs: a guest's kernel threads, and threads of its VMM.

Such a thread competes for host cores with everything else. What it takes is the guest's
`kernel_thread_ns`, never a part of a phase: a phase feels it as a wait for a host core, as a
lock that is held, or by what the thread has done to memory.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import simpy

from simvm.model.queues import Process
from simvm.model.vcpu import GuestKilled

if TYPE_CHECKING:
    from simvm.model.guest import Guest


class KernelThread:
    """One thread of a guest."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._host = guest.host

    def spend(self, ns: int) -> Process:
        """Work for `ns` on a host core, after waiting for one."""
        if ns <= 0:
            return
        core = yield from self._host.cores.acquire()
        try:
            yield self._host.env.timeout(ns)
        finally:
            self._host.cores.release(core)
        self._guest.kernel_thread_ns += ns

    def sleep(self, ns: int) -> Process:
        """Let `ns` pass off the core."""
        yield self._host.env.timeout(ns)

    def wait(self, event: simpy.Event) -> Process:
        """Let time pass off the core until an event."""
        yield event


def until_killed(activity: Process) -> Process:
    """An activity of a guest, that ends when the guest does."""
    with suppress(simpy.Interrupt, GuestKilled):
        yield from activity
