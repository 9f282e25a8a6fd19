"""Phases that keep to the clock: accesses at a rate, in a region whose size follows a series.

A step of the series (`simvm.workload.usage_series`) says how much is used, and how active the
guest is, until the next one. As a step begins, the region is brought to its size. Where it grows,
its first thread writes each new 4 KiB page once, in order, as the user of an allocator would;
these accesses come on top of the rate. Where it shrinks, the tail is freed, as `free` of a phase
does it. Sizes are whole 4 KiB pages, the same for every size of guest page; a guest page is kept
while any of it is used, so what is freed are whole guest pages. Then the threads access what is
used now: with a new stream when the size has changed, whose draws hang on the step's number.

The loop is closed and paced. In each interval a thread does its share of rate x activity x
interval accesses, and then rests to the interval's end. When it is late, it goes on at once; no
access is left out, so a guest that does not keep up is late with its steps as well. Intervals lie
on a grid that begins anywhere, drawn for each guest, so that guests do not all begin at one
moment; a step's end cuts an interval short. Elapsed time counts while a thread is busy.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from simvm import _core
from simvm.hardware.geometry import ORDER_BYTES, PAGE
from simvm.model.accounts import Stopwatch
from simvm.model.queues import Process
from simvm.model.spaces import NamedRegion
from simvm.model.vcpu import GuestKilled, VirtualCpu, Work
from simvm.scenario import SequentialPattern
from simvm.scenario.check_usage import extremes
from simvm.scenario.usage import INTERVAL
from simvm.workload.patterns import make_stream, random_bits
from simvm.workload.usage import FULL
from simvm.workload.usage_series import Member, Step, steps

if TYPE_CHECKING:
    from simvm.model.tasks import PhaseRecord, Task
    from simvm.scenario import Phase

_SECOND = 1_000_000_000


class PacedPhase:
    """One repetition of a phase that keeps to the clock."""

    def __init__(self, task: Task, phase: Phase, record: PhaseRecord) -> None:
        guest = task.guest
        self._task = task
        self._phase = phase
        self._record = record
        self._guest = guest
        self._env = guest.host.env
        self._seed = guest.scenario.scenario.seed
        self._label = f"{guest.name}/{phase.name}/{record.repetition}"
        self._interval = phase.interval or INTERVAL
        grid = np.random.Generator(random_bits(self._seed, f"{self._label}/intervals"))
        self._offset = int(grid.integers(self._interval))
        self._steps = self._to_the_end(self._all_steps(), phase.duration)
        self._first = next(self._steps)
        self._sized: _Sized | None = None
        self._works: list[Work] = []        # by thread, for as long as the size is
        self._works_bytes = 0
        self._streams: list[str] = []       # their labels

    def _all_steps(self) -> Iterator[Step]:
        guest, usage, now = self._guest, self._phase.usage, self._env.now
        if usage is None:
            assert self._phase.duration is not None
            return iter([Step(now, now + self._phase.duration, 0, None, FULL)])
        count = guest.config.count
        member = Member(self._seed, guest.class_, guest.index, count, self._phase.name)
        return steps(usage, member, now)

    def _to_the_end(self, made: Iterator[Step], duration: int | None) -> Iterator[Step]:
        """Steps, cut off after `duration`."""
        end = None if duration is None else self._env.now + duration
        for step in made:
            if end is not None and step.end_ns >= end:
                yield step._replace(end_ns=end)
                return
            yield step

    @property
    def first_bytes(self) -> int:
        """What its region has at first."""
        return self._first.used_bytes

    @property
    def room(self) -> int:
        """What its region has at the most."""
        assert self._phase.usage is not None
        known = extremes(self._phase.usage)
        assert known is not None
        return known[1]

    def run(self, region: NamedRegion) -> Process:
        """All steps in order. GuestKilled when the guest dies meanwhile."""
        phase, guest = self._phase, self._guest
        if phase.usage is not None:
            self._sized = _Sized(self._task, phase, self._record, region, self._label)
        number, step = 0, self._first
        while True:
            if step.cached_bytes is not None:
                assert guest.mm.cache is not None
                guest.mm.cache.follow(step.cached_bytes)
            if self._sized is not None:
                yield from self._sized.resize(step.used_bytes, number)
            if phase.access_rate is not None:
                yield from self._access(step, number, region)
            elif self._env.now < step.end_ns:
                yield self._env.timeout(step.end_ns - self._env.now)
            after = next(self._steps, None)
            if after is None:
                self._note_streams()
                return
            number, step = number + 1, after

    def _access(self, step: Step, number: int, region: NamedRegion) -> Process:
        """The accesses of one step, by all threads."""
        task, phase, guest = self._task, self._phase, self._guest
        if not self._works or region.used_bytes != self._works_bytes:
            self._note_streams()
            self._works_bytes = region.used_bytes
            self._works = [
                self._new_work(region, f"{self._label}/{number}/{thread}", thread)
                for thread in range(phase.threads)
            ]
        bodies = [
            self._thread(vcpu, work, step, thread)
            for thread, (vcpu, work) in enumerate(zip(task.vcpus, self._works, strict=False))
        ]
        yield from task.side_by_side(bodies, self._works)
        if not guest.alive:
            raise GuestKilled
        yield from task.tell(phase, guest.channel.named(task.vcpus[0], guest, region))

    def _new_work(self, region: NamedRegion, label: str, thread: int) -> Work:
        """What a thread does while the region has the size that it has now."""
        phase = self._phase
        assert phase.pattern is not None
        begin(self._task.vcpus[thread], phase)
        self._streams.append(label)
        source = make_stream(
            phase.pattern, region.used_bytes, phase.write_fraction,
            random_bits(self._seed, label), thread, phase.threads,
        )  # fmt: skip
        return self._task.work(phase, region, source, label, thread)

    def _note_streams(self) -> None:
        """The streams have ended."""
        for label, work in zip(self._streams, self._works, strict=True):
            self._guest.note_stream(label, work.stream.digest)
        self._streams, self._works = [], []

    def _thread(self, vcpu: VirtualCpu, work: Work, step: Step, thread: int) -> Process:
        """One thread's share of a step."""
        env, record, done = self._env, self._record, 0
        for start, end in pairwise(self._cuts(step)):
            due = self._due(step, end, thread)
            if due > done:
                watch = Stopwatch(vcpu.account, env.now)
                yield from vcpu.run(work, due - done)
                watch.stop(env.now, f"{self._label}: accesses due from {start} to {end}")
                vcpu.rest()
                done = due
            if env.now < end:
                yield env.timeout(end - env.now)
            record.late_ns = max(record.late_ns, env.now - end)

    def _cuts(self, step: Step) -> Iterator[int]:
        """Where intervals begin and end: the step's own ends, and the grid between them."""
        yield step.start_ns
        at = step.start_ns + (self._offset - step.start_ns - 1) % self._interval + 1
        while at < step.end_ns:
            yield at
            at += self._interval
        yield step.end_ns

    def _due(self, step: Step, end: int, thread: int) -> int:
        """Accesses that a thread has to have done by `end`, of those of the step."""
        rate, threads = self._phase.access_rate, self._phase.threads
        assert rate is not None
        due = rate * step.activity * (end - step.start_ns) // (FULL * _SECOND)
        return due // threads + (thread < due % threads)


def begin(vcpu: VirtualCpu, phase: Phase) -> None:
    """Let a vCPU count from nothing: it is about to begin with other work."""
    vcpu.core.set_phase(phase.cycles_per_access, phase.walk_exposed)


class _Sized:
    """A region that is brought to one size after another.

    The core's own count of touched pages begins anew with each growth. Here it is known without:
    all that is used has been written, but for what growth has still to write.
    """

    def __init__(
        self, task: Task, phase: Phase, record: PhaseRecord, region: NamedRegion, label: str
    ) -> None:
        self._task = task
        self._phase = phase
        self._record = record
        self._region = region
        self._label = label
        self._guest = task.guest
        self._used = 0      # all of it has been written
        self._touched = 0   # and not unmapped since; more than is used, in pages that are kept
        self._parts: list[_core.Region] = []    # that growth writes
        region.count = self._count

    def _count(self) -> int:
        written = self._used + sum(part.touched_bytes for part in self._parts)
        return max(min(self._touched, self._region.core.size), written)

    def resize(self, used: int, number: int) -> Process:
        """Bring the region to `used` bytes."""
        region, page = self._region, self._page
        whole = -(-used // page) * page
        if whole < region.core.size:
            self._used = region.asked = used
            yield from self._task.free(region.core.size - whole, region, self._record)
            self._touched = min(self._touched, whole)
        elif used < self._used:
            self._used = region.asked = used
        elif used > self._used:
            yield from self._grow(used, whole, number)

    @property
    def _page(self) -> int:
        """What the region has whole pages of."""
        guest, host = self._guest, self._guest.host.settings
        if guest.is_vm:
            return ORDER_BYTES[self._region.core.order]
        return host.page_size if host.backing == "hugetlb" else PAGE

    def _grow(self, used: int, whole: int, number: int) -> Process:
        """Add pages to the region, and write them in order."""
        region = self._region
        mapped = min(whole, -(-self._used // self._page) * self._page)
        if whole > region.core.size:
            region.core = self._core(region.core.base, whole, region.core.order)
        region.asked = used
        # The rest of a guest page that is partly used is mapped as it is; a page of 2 MiB must
        # lie within a part to be one.
        base, start = region.core.base, self._used
        parts = []
        if start < min(mapped, used):
            parts.append((base + start, min(mapped, used) - start, 0))
        if mapped < used:
            parts.append((base + mapped, used - mapped, region.core.order))
        self._touched = max(self._touched, start)
        for part, (address, size, order) in enumerate(parts):
            yield from self._write(address, size, order, f"{self._label}/{number}/new/{part}")
        region.core.note_touched(used)
        self._used, self._parts = used, []
        self._touched = max(self._touched, used)
        self._guest.note_backed()
        task = self._task
        named = self._guest.channel.named(task.vcpus[0], self._guest, region)
        yield from task.tell(self._phase, named)

    def _core(self, address: int, size: int, order: int) -> _core.Region:
        guest, like = self._guest, self._region.core
        asid = guest.process(self._region.process).core.asid
        zeroing = guest.is_vm and guest.config.zeroing == "guest"
        return _core.Region(address, size, order, zeroing, asid, like.pooled and order > 0)

    def _write(self, address: int, size: int, order: int, label: str) -> Process:
        """The first thread writes each page of a part, as a phase of its own would."""
        task, phase, guest = self._task, self._phase, self._guest
        vcpu, env = task.vcpus[0], guest.host.env
        page = ORDER_BYTES[order]
        part = self._core(address, -(-size // page) * page, order)
        self._parts.append(part)
        pattern = SequentialPattern(stride=PAGE)
        writes = phase.model_copy(update={
            "pattern": pattern, "accesses": size // PAGE, "write_fraction": 1.0,
            "access_rate": None, "usage": None, "threads": 1,
        })  # fmt: skip
        bits = random_bits(guest.scenario.scenario.seed, label)
        region = NamedRegion(phase.process, phase.region, size, part)
        work = task.work(writes, region, make_stream(pattern, size, 1.0, bits, 0, 1), label, 0)
        begin(vcpu, phase)
        guest.works.append(work)
        watch = Stopwatch(vcpu.account, env.now)
        yield from vcpu.run(work, size // PAGE)
        watch.stop(env.now, f"{label}: writing new pages")
        vcpu.rest()
        guest.works.remove(work)
        if work.sampling is not None:
            work.sampling.release()
        guest.note_stream(label, work.stream.digest)
