"""One run: a host and its guests from time 0 to the end, sampled and checked.

The order of events at one time is SimPy's: urgent before normal, then as scheduled.
Guests are made in the order of the file, so a run depends on the scenario and its seed
alone.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from simvm.hardware import load_costs, load_cpu
from simvm.model import ledger
from simvm.model.clock import Clock
from simvm.model.faults import make_fault_path
from simvm.model.guest import Guest
from simvm.model.host import Host
from simvm.model.lifecycle import Population
from simvm.model.queues import Process
from simvm.model.sampling import Sampler
from simvm.model.summary import Summary
from simvm.model.tasks import Task, make_tasks

if TYPE_CHECKING:
    from simvm.recorder import Recorder
    from simvm.scenario import Scenario

Watcher = Callable[[int, int, int | None], None]
"""Told at each sample: simulated ns, accesses done, accesses in all (None: not known)."""


def thorough() -> bool:
    """Whether SIMVM_DEBUG asks for the thorough invariants."""
    return os.environ.get("SIMVM_DEBUG", "0") not in ("", "0")


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """A list that the first Ctrl-C fills; the second one interrupts as usual."""
    stop: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, _: FrameType | None) -> None:
        stop.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


class Simulation:
    """A scenario (resolved, one variant) under way."""

    def __init__(
        self, scenario: Scenario, recorder: Recorder, watcher: Watcher | None = None
    ) -> None:
        self._scenario = scenario
        self._watcher = watcher
        self.env = Clock()
        host = Host(
            self.env, scenario, load_cpu(scenario.host.cpu), load_costs(scenario.host.costs)
        )
        self.host = host
        path = make_fault_path(host)
        self.guests: list[Guest] = []
        for name, config in scenario.guests.items():
            for index in range(config.count):
                self.guests.append(Guest(host, scenario, name, index, len(self.guests) + 1, path))
        self.tasks: dict[int, list[Task]] = {g.owner: make_tasks(g) for g in self.guests}
        self._sampler = Sampler(host, self.guests, recorder, scenario.scenario.warmup)
        self._thorough = thorough()
        self.partial = True     # until it has come to its end

    def run(self) -> None:
        """To the end of the scenario; Ctrl-C ends it early and marks it partial."""
        meta = self._scenario.scenario
        populations = {
            name: Population(self.env, self._scenario, name) for name in self._scenario.guests
        }
        lives = [
            self.env.process(guest.life.run(populations[guest.class_], self.tasks[guest.owner]))
            for guest in self.guests
        ]
        end = self.env.all_of(lives) if meta.duration == "work" else self.env.timeout(meta.duration)
        self.env.process(self._samples())
        with interruptible() as stop:
            # Between two events everything is consistent, so there a run may end.
            step = self.env.step
            while not end.processed and not stop:
                step()
        self.partial = bool(stop)
        for tasks in self.tasks.values():
            for task in tasks:
                task.close_record()
        self._check()
        self._sampler.sample()

    def summary(self, digest: str) -> dict[str, Any]:
        """What came of it; while it runs, what has come of it so far, as of the last sample."""
        for tasks in self.tasks.values():
            for task in tasks:
                task.update_record()
        build = Summary(self._scenario, self.host, self._sampler, self.tasks).build
        return build(
            self.guests, seed=self._scenario.scenario.seed, digest=digest,
            partial=self.partial,
        )  # fmt: skip

    @property
    def accesses(self) -> int:
        """Accesses done by all guests."""
        return sum(v.core.counters()["accesses"] for g in self.guests for v in g.vcpus)

    @property
    def operations(self) -> dict[str, int]:
        """What `sampled` has done (docs/fidelity.md), by kind, and SimPy's events: not times,
        which differ from machine to machine. Of all guests that there are."""
        vcpus = [vcpu for guest in self.guests for vcpu in guest.vcpus]
        total = {"simpy_events": self.env.events}
        for vcpu in vcpus:
            counts = vcpu.core.operations | {
                "window_accesses": vcpu.window_accesses, "window_turns": vcpu.window_turns,
                "sampled_turns": vcpu.sampled_turns,
            }  # fmt: skip
            for name, n in counts.items():
                total[name] = total.get(name, 0) + n
        return total

    def _samples(self) -> Process:
        interval = self._scenario.scenario.sample_interval
        total = self._work()
        while True:
            self._check()
            self._sampler.sample()
            if self._watcher is not None:
                self._watcher(self.env.now, self.accesses, total)
            yield self.env.timeout(interval)

    def _check(self) -> None:
        """The cheap invariants in every run, the thorough ones on request."""
        ledger.balance(self.host)
        if self._thorough:
            ledger.audit(self.host)

    def _work(self) -> int | None:
        """Accesses of all closed-loop phases; None when there is an open loop or a trace.

        Nor is it known how much guests get done that depart by themselves.
        """
        total = 0
        for config in self._scenario.guests.values():
            if config.lifetime is not None:
                return None
            for phase in config.workload:
                if phase.pattern is not None:
                    if phase.accesses is None:
                        return None
                    total += phase.accesses * phase.repeat * config.count
        return total

