"""Queues of the host: locks, cores, and threads that serve faults.

A lock or a device channel whose service times are known on arrival needs no events: its
waiting time follows from when it will be free (first come, first served). Threads that
run on host cores are SimPy processes. Times are integer ns.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Generator, Hashable
from typing import Any, cast

import simpy

from simvm.model.clock import Clock

Process = Generator[simpy.Event, Any, Any]


class Channels:
    """`n` servers behind one first-come-first-served queue; one server is a lock."""

    def __init__(self, n: int = 1) -> None:
        if n < 1:
            raise ValueError(f"n(={n}) must be >= 1.")
        self._free_at = [0] * n

    def reserve(self, now: int, service: int) -> int:
        """Take the next free server for `service` ns; the wait until it starts, in ns."""
        start = max(now, self._free_at[0])
        heapq.heapreplace(self._free_at, start + service)
        return start - now

    def is_free(self, now: int) -> bool:
        """Whether somebody who arrives now need not wait."""
        return self._free_at[0] <= now

    def wait(self, now: int) -> int:
        """The wait of somebody who arrives now, in ns."""
        return max(0, self._free_at[0] - now)


class BlockQueue:
    """A block device: `parallelism` requests at a time, and one link of `bandwidth` bytes/s."""

    def __init__(self, parallelism: int, bandwidth: int) -> None:
        self._channels = Channels(parallelism)
        self._link = Channels()
        self._bandwidth = bandwidth

    def request(self, now: int, latency: int, size: int) -> int:
        """ns until a request made now is done: its channel's latency, and the shared link."""
        channel = self._channels.reserve(now, latency) + latency
        transfer = size * 1_000_000_000 // self._bandwidth
        return max(channel, self._link.reserve(now, transfer) + transfer)


class Cores:
    """Host cores by number, shared by vCPUs, kswapd and fault threads.

    A vCPU's home is the core that it was on last. It gets its home if that is free; else the
    lowest free core that is nobody's home; else the free core that was left longest ago. A core
    that is given back goes to who has waited longest among those whose home it is and those who
    have none, else to who has waited longest at all: so vCPUs that must share cores stay where
    their translations are, as with the run queues of a scheduler, and no core is idle while
    somebody waits. Who asks without a name has no home.
    """

    def __init__(self, env: Clock, n: int) -> None:
        self._env = env
        self._left: dict[int, None] = {}    # free, and used before: in the order they were left
        self._new = range(n)                # never used
        self._home: dict[Hashable, int] = {}
        self._residents: Counter[int] = Counter()
        self._queue: deque[tuple[Hashable | None, simpy.Event]] = deque()

    @property
    def contended(self) -> bool:
        """Whether somebody waits for a core."""
        return bool(self._queue)

    def acquire(self, who: Hashable | None = None) -> Process:
        """Wait for a core, and return its number. An interrupted wait gives up the home."""
        core = self._free_one(who)
        if core is None:
            turn = self._env.event()
            self._queue.append((who, turn))
            try:
                core = yield turn
            except simpy.Interrupt:
                if turn.triggered:
                    self.release(cast(int, turn.value))
                else:
                    self._queue.remove((who, turn))
                self.forget(who)
                raise
        if who is not None and self._home.get(who) != core:
            self.forget(who)
            self._home[who] = core
            self._residents[core] += 1
        return core

    def release(self, core: int) -> None:
        """Give a core back; somebody who waits has it at once."""
        if not self._queue:
            self._left[core] = None
            return
        chosen = 0
        for place, (who, _) in enumerate(self._queue):
            if self._home.get(who, core) == core:
                chosen = place
                break
        _, turn = self._queue[chosen]
        del self._queue[chosen]
        turn.succeed(core)

    def forget(self, who: Hashable | None) -> None:
        """Who will not come back has no home."""
        if who in self._home:
            self._residents[self._home.pop(who)] -= 1

    def _free_one(self, who: Hashable | None) -> int | None:
        chosen = self._home.get(who)
        if chosen not in self._left:
            nobodys = [core for core in self._left if not self._residents[core]]
            if not nobodys and self._new:
                chosen, self._new = self._new[0], self._new[1:]
                return chosen
            chosen = min(nobodys, default=next(iter(self._left), None))
        if chosen is not None:
            del self._left[chosen]
        return chosen


class Train:
    """Faults that one vCPU took back to back, served as one request."""

    def __init__(self, env: Clock, faults: int, service: int) -> None:
        self.arrived = env.now
        self.faults = faults
        self.service_each = service // faults
        self.rest = service - self.service_each * faults   # goes with the last fault
        self.served_ns = 0
        self.done = env.event()


class FaultThreads:
    """Threads behind one queue, as user-space fault handlers are (userfaultfd).

    A train is served in one piece until somebody else waits; then it ends after the fault
    in service and queues again with the rest. With `hold`, taking a fault and waking who
    waits for it happen under one lock, for so many ns a fault as `hold` says, given how many
    others are not served yet: then faults of several vCPUs are served one by one.
    """

    def __init__(
        self, env: Clock, cores: Cores, workers: int, hold: Callable[[int], int] | None = None
    ) -> None:
        self._env = env
        self._cores = cores
        self._hold = hold
        self._lock = Channels()
        self._queue: deque[Train] = deque()
        self._unserved = 0
        self._idle: deque[simpy.Event] = deque()
        self._cuts: list[simpy.Event | None] = [None] * workers
        for worker in range(workers):
            env.process(self._serve(worker))

    def submit(self, faults: int, service: int) -> Train:
        """Queue a train of `faults` that takes `service` ns in all; its `done` event fires."""
        train = Train(self._env, faults, service)
        self._queue.append(train)
        self._unserved += 1
        if not self._idle or self._hold is not None:
            self._cut_one()
        if self._idle:
            self._idle.popleft().succeed()
        return train

    def _cut_one(self) -> None:
        for cut in self._cuts:
            if cut is not None and not cut.triggered:
                cut.succeed()
                break

    def _serve(self, worker: int) -> Process:
        env = self._env
        while True:
            if not self._queue:
                woken = env.event()
                self._idle.append(woken)
                yield woken
                continue
            train = self._queue.popleft()
            core = yield from self._cores.acquire()
            held = 0
            if self._hold is not None:
                held = self._hold(self._unserved - 1)
                wait = self._lock.reserve(env.now, held)
                if wait:
                    yield env.timeout(wait)     # spins on its core
            started = env.now
            alone = self._unserved == 1 if self._hold is not None else not self._queue
            faults = train.faults if alone else 1
            if faults < train.faults or train.faults == 1:
                yield env.timeout(self._length(train, faults, held))
            else:
                cut = self._cuts[worker] = env.event()
                yield env.timeout(self._length(train, faults, held)) | cut
                self._cuts[worker] = None
                spent = env.now - started
                if spent < self._length(train, faults, held):
                    each = train.service_each + held
                    # Faults that take no time are over; what is left is the last one's.
                    faults = min(faults, spent // each + 1) if each else faults
                yield env.timeout(max(0, self._length(train, faults, held) - spent))
            self._cores.release(core)
            train.served_ns += env.now - started
            train.faults -= faults
            if train.faults:
                self._queue.append(train)
            else:
                self._unserved -= 1
                train.done.succeed()

    @staticmethod
    def _length(train: Train, faults: int, held: int) -> int:
        """ns that `faults` of the train take."""
        service = train.service_each * faults + (train.rest if faults == train.faults else 0)
        return service + held * faults
