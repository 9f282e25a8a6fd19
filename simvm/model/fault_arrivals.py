"""Faults that arrive at the fault threads by themselves, without guests around them.

What the queue of `simvm.model.queues.FaultThreads` does to single faults, for comparison
with queueing theory: an open stream of them, as from infinitely many vCPUs, or a closed
set of vCPUs that each think, fault, and wait for the answer. Every worker has a core of
its own. Times are integer ns.

Left out: trains of several faults, and workers that share cores with vCPUs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from simvm.model.clock import Clock
from simvm.model.queues import Cores, FaultThreads, Process

Fault = tuple[int, int]
"""ns from the arrival before it (or from the last answer), and ns of service."""


def open_waits(faults: Iterable[Fault], workers: int) -> list[int]:
    """The wait of each fault of an open stream until its service starts, as they end."""
    env = Clock()
    threads = FaultThreads(env, Cores(env, workers), workers)
    waits: list[int] = []

    def arrive() -> Process:
        for gap, service in faults:
            yield env.timeout(gap)
            env.process(_one(env, threads, service, waits))

    env.process(arrive())
    env.run()
    return waits


def closed_waits(vcpus: Sequence[Iterable[Fault]], workers: int) -> list[int]:
    """The waits of the faults of a closed set of vCPUs, as they end."""
    env = Clock()
    threads = FaultThreads(env, Cores(env, workers), workers)
    waits: list[int] = []

    def run(faults: Iterable[Fault]) -> Process:
        for think, service in faults:
            yield env.timeout(think)
            yield from _one(env, threads, service, waits)

    for faults in vcpus:
        env.process(run(faults))
    env.run()
    return waits


def _one(
    env: Clock, threads: FaultThreads, service: int, waits: list[int]
) -> Process:
    train = threads.submit(1, service)
    yield train.done
    waits.append(env.now - train.arrived - service)
