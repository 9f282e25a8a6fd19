"""Reclaim before memory is short: a thread that takes memory at a steady pace, or to a target.

As a tool does that writes to `memory.reclaim` of the cgroup above all guests
(Documentation/admin-guide/cgroup-v2.rst): it has the policy, the protection and the costs of
the host's reclaim, and runs on a host core of its own choosing the moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simvm.model.queues import Process

if TYPE_CHECKING:
    from simvm.model.host import Host
    from simvm.scenario.reclaim import Proactive

RETRIES = 16  # MAX_RECLAIM_RETRIES, mm/internal.h


class ProactiveReclaim:
    """The thread, and the host CPU time that it took."""

    def __init__(self, host: Host, settings: Proactive) -> None:
        self._host = host
        self._settings = settings
        self.spent_ns = 0
        host.env.process(self._run())

    def _run(self) -> Process:
        host, settings = self._host, self._settings
        while True:
            yield host.env.timeout(settings.interval)
            goal = self._taken
            if settings.rate is not None:
                goal += settings.rate * settings.interval // 1_000_000_000
            elif settings.free is not None:
                goal += settings.free - host.free_bytes - host.swap.writeback_bytes
            tries = 0
            while self._taken < goal and tries < RETRIES:
                core = yield from host.cores.acquire()
                reclaimed, cost = host.reclaimer.shrink()
                yield host.env.timeout(cost)
                self.spent_ns += cost
                host.cores.release(core)
                tries = 0 if reclaimed else tries + 1

    @property
    def _taken(self) -> int:
        return self._host.reclaimer.reclaimed_bytes
