"""Tasks and phases: what the processes of a guest do, in closed and open loop.

Tasks run side by side, each on vCPUs of its own; the phases of a task run in order. In a
closed loop each thread does its share of the accesses. In an open loop requests arrive by
a Poisson process, queue, and are served by the first free thread: latency counts from
arrival, elapsed time only while a request is served. Phases that keep to the clock are in
`usage`.
"""

from __future__ import annotations

from array import array
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import simpy

from simvm.hardware.geometry import ORDER_BYTES
from simvm.model.accounts import Stopwatch, difference
from simvm.model.queues import Process
from simvm.model.returns import Frees
from simvm.model.sampled import Sampling
from simvm.model.swap.cxl import InPlace
from simvm.model.usage import PacedPhase
from simvm.model.vcpu import GuestKilled, VirtualCpu, Work
from simvm.scenario import CxlSwap, UniformPattern
from simvm.workload.patterns import (
    Chunks,
    make_stream,
    make_touches,
    random_bits,
    taken_from,
    trace_of,
)

if TYPE_CHECKING:
    from simvm import _core
    from simvm.model.guest import Guest
    from simvm.model.spaces import NamedRegion
    from simvm.scenario import Phase

FREED_AT_ONCE = 16 << 20
"""Bytes that a guest with per-CPU lists frees before another of its vCPUs may run."""


@dataclass
class PhaseRecord:
    """What one repetition of a phase came to."""

    phase: Phase
    repetition: int
    start_ns: int
    end_ns: int | None = None
    elapsed_ns: int = 0
    ideal_ns: int = 0
    accesses: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    latencies_ns: array[int] = field(default_factory=lambda: array("q"))
    frees: Frees = field(default_factory=Frees)
    late_ns: int = 0    # of a paced phase: how far behind the clock it was at most


class Task:
    """Phases of a guest that run one after another, on vCPUs of their own."""

    def __init__(self, guest: Guest, name: str, vcpus: list[VirtualCpu]) -> None:
        self.guest = guest
        self.name = name
        self.vcpus = vcpus
        self.phases = [phase for phase in guest.config.workload if phase.task == name]
        self.records: list[PhaseRecord] = []
        self._before: tuple[dict[str, int], dict[str, int]] = {}, {}
        self._samplings: dict[tuple[str, str, int], Sampling] = {}   # the last ones

    def run(self) -> Process:
        """All phases in order; ends early, and quietly, when the guest is killed."""
        env = self.guest.host.env
        try:
            for phase in self.phases:
                started = env.now
                for repetition in range(phase.repeat):
                    if repetition and phase.every is not None:
                        yield env.timeout(max(0, started + repetition * phase.every - env.now))
                    yield from self._phase(phase, repetition)
        except (simpy.Interrupt, GuestKilled):
            pass
        finally:
            self.close_record()
            for vcpu in self.vcpus:
                vcpu.rest()

    def _phase(self, phase: Phase, repetition: int) -> Process:
        guest, env = self.guest, self.guest.host.env
        first = self.vcpus[0]
        if not guest.alive:     # killed by another task before this one could begin
            raise GuestKilled
        for vcpu in self.vcpus:
            vcpu.measuring = phase.measure
        record = PhaseRecord(phase, repetition, env.now)
        self.records.append(record)
        self._before = self._parts(), self._counters()
        paced = PacedPhase(self, phase, record) if phase.paced else None
        size, room = phase.allocate, 0
        if phase.pattern is not None and phase.pattern.kind == "trace":
            size = trace_of(phase.pattern).region_bytes
        elif paced is not None and phase.usage is not None:
            size, room = paced.first_bytes, paced.room
        if size is not None and (phase.process, phase.region) not in guest.regions:
            yield from self._make_region(phase, size, room)
        region = guest.regions[phase.process, phase.region]
        for operation in phase.hints_before:
            yield from self.tell(phase, guest.channel.hinted(first, guest, region, operation))
        if paced is not None:
            yield from paced.run(region)
        elif phase.pattern is not None:
            yield from self._access(phase, repetition, region, record)
            yield from self.tell(phase, guest.channel.named(first, guest, region))
        for operation in phase.hints_after:
            yield from self.tell(phase, guest.channel.hinted(first, guest, region, operation))
        if phase.free != "none":
            yield from self.free(phase.free, region, record)
        self.close_record()

    def _make_region(self, phase: Phase, size: int, room: int) -> Process:
        """Make a region; a new process needs a page for its table first."""
        guest, first = self.guest, self.vcpus[0]
        watch = Stopwatch(first.account, guest.host.env.now)
        while (phase.process, phase.region) not in guest.regions:
            try:
                guest.allocate(phase.process, phase.region, size, phase.hugetlb, room)
            except MemoryError:
                yield from first.live_on(guest.mm.out_of_memory(first))
        watch.stop(guest.host.env.now, f"{guest.name} {phase.name}: making its region")

    def close_record(self) -> None:
        """Complete the newest record, also of a phase that was cut short."""
        if self.records and self.records[-1].end_ns is None:
            self.update_record()
            self.records[-1].end_ns = self.guest.host.env.now

    def update_record(self) -> None:
        """Bring the newest record up to now, if its phase is under way."""
        if not self.records or self.records[-1].end_ns is not None:
            return
        record = self.records[-1]
        parts, counters = self._before
        record.parts = difference(self._parts(), parts)
        record.elapsed_ns = sum(record.parts.values())
        record.ideal_ns = record.parts["compute_ns"] + record.parts["think_ns"]
        record.counters = {name: n - counters[name] for name, n in self._counters().items()}
        record.accesses = record.counters["accesses"]

    def _parts(self) -> dict[str, int]:
        return add_up([vcpu.account.parts() for vcpu in self.vcpus])

    def _counters(self) -> dict[str, int]:
        return add_up([vcpu.core.counters() for vcpu in self.vcpus])

    def _access(
        self, phase: Phase, repetition: int, region: NamedRegion, record: PhaseRecord
    ) -> Process:
        guest = self.guest
        assert phase.pattern is not None
        label = f"{guest.name}/{phase.name}/{repetition}"
        requests = Requests(guest, phase, label) if phase.open_loop else None
        bodies: list[Process] = [] if requests is None else [requests.arrive()]
        works: list[Work] = []
        # Who serves a request depends on time; what requests access must not.
        sources = 1 if requests is not None else phase.threads
        streams: list[tuple[_core.Stream, Chunks]] = []
        for number in range(sources):
            bits = random_bits(guest.scenario.scenario.seed, f"{label}/{number}")
            streams.append(make_stream(
                phase.pattern, region.used_bytes, phase.write_fraction, bits, number, sources
            ))  # fmt: skip
        shared = None
        if sources < phase.threads:
            shared = self._sampling(phase, region, streams[0][0], label, 0)
        for number in range(phase.threads):
            if sources == phase.threads:
                stream, chunks = streams[number]
            else:
                assert phase.accesses_per_request is not None
                stream, chunks = taken_from(
                    streams[0][0], region.used_bytes, phase.accesses_per_request
                )
            works.append(self.work(
                phase, region, (stream, chunks), f"{label}/{number}", number % sources, shared
            ))  # fmt: skip
            vcpu = self.vcpus[number]
            vcpu.core.set_phase(phase.cycles_per_access, phase.walk_exposed)
            if requests is None:
                bodies.append(self._closed(vcpu, works[-1], share_of(phase, number)))
            else:
                bodies.append(requests.serve(vcpu, works[-1], record))
        yield from self.side_by_side(bodies, works)
        for number, (stream, _) in enumerate(streams):
            guest.note_stream(f"{label}/{number}", stream.digest)
        if not guest.alive:
            raise GuestKilled

    def work(
        self, phase: Phase, region: NamedRegion, source: tuple[_core.Stream, Chunks], label: str,
        thread: int, sampling: Sampling | None = None,
    ) -> Work:  # fmt: skip
        """What a thread of a phase is to do in a region; `sampling` if it shares that."""
        work = Work(phase, self.guest.process(phase.process), region, *source)
        work.sampling = sampling or self._sampling(phase, region, source[0], label, thread)
        work.in_place = self._in_place(phase, region, f"{label}/in place")
        return work

    def side_by_side(self, bodies: list[Process], works: list[Work]) -> Process:
        """Run threads, and whoever feeds them, until all have ended."""
        guest, env = self.guest, self.guest.host.env
        threads = [env.process(self._guarded(body)) for body in bodies]
        guest.activities += threads
        guest.works += works
        yield env.all_of(threads)
        guest.works = [each for each in guest.works if each not in works]
        guest.activities = [each for each in guest.activities if each not in threads]

    def _sampling(
        self, phase: Phase, region: NamedRegion, stream: _core.Stream, label: str, thread: int
    ) -> Sampling | None:
        """What draws the accesses of a stream; None where each is run."""
        scenario, host = self.guest.scenario.scenario, self.guest.host
        if scenario.fidelity == "exact" or phase.pattern is None:
            return None
        touches = make_touches(
            phase.pattern, stream, region.core, scenario.seed, f"{label}/touched"
        )
        key = phase.name, phase.pattern.kind, thread
        made = Sampling(touches, host.cpu.geometry, scenario, self._samplings.get(key))
        self._samplings[key] = made
        return made

    def _in_place(self, phase: Phase, region: NamedRegion, label: str) -> InPlace | None:
        """What estimates the latency of memory beside RAM; None where there is none.

        A pass from end to end touches every page alike, whenever one looks: as uniform draws.
        """
        host = self.guest.host
        swap = host.settings.swap
        if not isinstance(swap, CxlSwap) or not host.settings.tier_bytes:
            return None
        pattern = phase.pattern
        if pattern is None or pattern.kind in ("sequential", "strided"):
            pattern = UniformPattern()
        bits = random_bits(self.guest.scenario.scenario.seed, label)
        stream, _ = make_stream(pattern, region.used_bytes, 0.0, bits, 0, 1)
        extra = swap.extra_latency or host.costs.cxl_extra_ns
        share = 1.0 if swap.miss_share is None else swap.miss_share
        return InPlace(stream, round(extra * share))

    def _closed(self, vcpu: VirtualCpu, work: Work, accesses: int) -> Process:
        """One thread's share of a closed loop."""
        env = self.guest.host.env
        watch = Stopwatch(vcpu.account, env.now)
        yield from vcpu.run(work, accesses)
        watch.stop(env.now, f"{self.guest.name} {work.phase.name}: a thread")
        vcpu.rest()

    def _guarded(self, body: Process) -> Process:
        """A thread that ends quietly when its guest is killed."""
        with suppress(simpy.Interrupt, GuestKilled):
            yield from body

    def tell(self, phase: Phase, calls: Process) -> Process:
        """Calls over the channel, by the first vCPU, on its time."""
        first, env = self.vcpus[0], self.guest.host.env
        watch = Stopwatch(first.account, env.now)
        yield from calls
        first.leave_core()
        watch.stop(env.now, f"{self.guest.name} {phase.name}: telling the host")

    def free(
        self, size: int | Literal["all"], region: NamedRegion, record: PhaseRecord
    ) -> Process:
        """Free a region or its tail, by the first vCPU, and tell the host through the channel."""
        guest, first = self.guest, self.vcpus[0]
        watch = Stopwatch(first.account, guest.host.env.now)
        yield from first.enter_core()
        back = guest.given_back = record.frees.begin(guest.host.env.now, 0)
        if not guest.is_vm:
            ((start, length),) = guest.free(region, size)
            back.freed_bytes = length
            cost = guest.zap(start, length)
            guest.forget(region, length)
            yield from first.spend(("shootdown_ns", cost))
        left = region.core.size if size == "all" else size
        page, each = ORDER_BYTES[region.core.order], 0
        if guest.config.per_cpu_lists:
            each = guest.host.costs.guest_free_ns
        while guest.is_vm and left:
            yield from first.enter_core()
            guest.memory.run_on(first.index)
            piece = min(left, max(FREED_AT_ONCE, page)) if each else left
            extents = guest.free(region, piece)
            left -= piece
            freed = sum(length for _, length in extents)
            back.freed_bytes += freed
            yield from first.pay_for_traps()
            yield from first.spend(("guest_fault_ns", freed // page * each))
            yield from guest.channel.freed(first, guest, extents)
        first.rest()
        watch.stop(guest.host.env.now, f"{guest.name} {record.phase.name}: freeing")


class Requests:
    """The queue of an open loop: Poisson arrivals, served first come, first served."""

    def __init__(self, guest: Guest, phase: Phase, label: str) -> None:
        self._guest = guest
        self._phase = phase
        self._env = guest.host.env
        self._label = label
        bits = random_bits(guest.scenario.scenario.seed, f"{label}/arrivals")
        self._random = np.random.Generator(bits)
        self._queue: deque[int] = deque()
        self._idle: deque[simpy.Event] = deque()
        self._open = True

    def arrive(self) -> Process:
        """Requests come until the phase's duration is over."""
        assert self._phase.rate is not None
        assert self._phase.duration is not None
        end = self._env.now + self._phase.duration
        gap = 1_000_000_000 / self._phase.rate
        while True:
            wait = int(self._random.exponential(gap))
            if self._env.now + wait >= end:
                break
            yield self._env.timeout(wait)
            self._queue.append(self._env.now)
            if self._idle:
                self._idle.popleft().succeed()
        yield self._env.timeout(end - self._env.now)
        self._open = False
        while self._idle:
            self._idle.popleft().succeed()

    def serve(self, vcpu: VirtualCpu, work: Work, record: PhaseRecord) -> Process:
        """One thread: serve requests until no more can come."""
        assert self._phase.accesses_per_request is not None
        while self._queue or self._open:
            if not self._queue:
                vcpu.rest()
                turn = self._env.event()
                self._idle.append(turn)
                yield turn
                continue
            arrived = self._queue.popleft()
            watch = Stopwatch(vcpu.account, self._env.now)
            yield from vcpu.run(work, self._phase.accesses_per_request)
            watch.stop(self._env.now, f"{self._label}: a request")
            record.latencies_ns.append(self._env.now - arrived)
            self._guest.requests += 1
        vcpu.rest()


def add_up(each: list[dict[str, int]]) -> dict[str, int]:
    """The sum of dictionaries that have the same keys."""
    return {name: sum(one[name] for one in each) for name in each[0]}


def share_of(phase: Phase, number: int) -> int:
    """The accesses of one thread of a closed loop: an even share, the first take the rest."""
    assert phase.pattern is not None
    total = phase.accesses
    if total is None and phase.pattern.kind == "trace":
        total = trace_of(phase.pattern).accesses
    assert total is not None
    return total // phase.threads + (number < total % phase.threads)


def make_tasks(guest: Guest) -> list[Task]:
    """The tasks of a guest in order of appearance, each with vCPUs of its own."""
    tasks: list[Task] = []
    first = 0
    for name in dict.fromkeys(phase.task for phase in guest.config.workload):
        width = max(phase.threads for phase in guest.config.workload if phase.task == name)
        tasks.append(Task(guest, name, guest.vcpus[first : first + width]))
        first += width
    return tasks
