"""Pressure stall information for memory: how much of what tasks could do is lost to stalls.

After kernel/sched/psi.c and Documentation/accounting/psi.rst. A group of tasks has so many
threads at a time as it has tasks that are not idle, but no more than there are CPUs. *Some* is
the share of these threads that a stalled task belongs to, *full* the share that does nothing
because of stalls: threads less running tasks, no more than are stalled. One of two tasks on one
CPU that is stalled gives some 1 and full 0, on two CPUs it gives one half of each.

A vCPU is a task in the group of its guest (as a cgroup on the host is one) and in that of the
host; in a guest of its own kernel it is a CPU, and what runs on it a task of the guest's own
group, which cannot see what the host does. A task is stalled on memory in direct reclaim, while a
limit throttles it, and while it reads back a page of the working set; another read is a wait for
the device. kswapd is stalled while it balances (mm/vmscan.c, `balance_pgdat`).

Times are exact, in ns, from one change to the next: nothing is done where no task is stalled.
Averages are the kernel's exponential ones over 10, 60 and 300 s, in its fixed point, brought up
every 2 s of simulated time; its rounding of a sample to whole percent is left out, as is that it
approximates the formula CPU by CPU. CPU and I/O pressure are left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from simvm.columns import PSI_WINDOWS
from simvm.model.clock import Clock
from simvm.units import SECOND

IDLE: Final = 0
RUNNING: Final = 1      # or ready to
WAITING: Final = 2      # for a device, for other reasons than lack of memory
STALLED: Final = 3      # on memory, whether asleep or at work

PERIOD_NS: Final = 2 * SECOND
FIXED_1: Final = 1 << 11
DECAYS: Final = (1677, 1981, 2034)
"""exp(-2 s / window) x `FIXED_1`: EXP_10s, EXP_60s and EXP_300s of psi.c."""


class Pressure:
    """The memory pressure of one group of tasks on `cpus` CPUs."""

    def __init__(self, env: Clock, cpus: int) -> None:
        self._env = env
        self._cpus = cpus
        self._tasks = [0, 0, 0, 0]      # by state
        self._since = env.now
        self._period_end = env.now // PERIOD_NS * PERIOD_NS + PERIOD_NS
        # threads -> ns x tasks: quotients would lose a part of a ns at each change
        self._some: defaultdict[int, int] = defaultdict(int)
        self._full: defaultdict[int, int] = defaultdict(int)
        self._averaged = (0, 0)         # some and full at the end of the last period
        self._averages = ([0] * len(DECAYS), [0] * len(DECAYS))     # percent x FIXED_1

    def join(self) -> None:
        """One more task, idle."""
        self._tasks[IDLE] += 1

    def move(self, before: int, after: int) -> None:
        """A task changes its state."""
        tasks = self._tasks
        if tasks[STALLED] or after == STALLED:
            self._settle()
        tasks[before] -= 1
        tasks[after] += 1

    def totals_ns(self) -> tuple[int, int]:
        """Some and full since the start, in ns."""
        self._settle()
        return self._totals()

    def averages(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Some and full of `PSI_WINDOWS`, each from 0 to 1, at the end of the last period."""
        self._settle()
        some, full = (tuple(one / (100 * FIXED_1) for one in each) for each in self._averages)
        return some, full

    def _totals(self) -> tuple[int, int]:
        some, full = (
            sum(spent // threads for threads, spent in each.items())
            for each in (self._some, self._full)
        )
        return some, full

    def _settle(self) -> None:
        """Count the time until now, in which nothing has changed."""
        now = self._env.now
        while self._period_end <= now:
            self._count(self._period_end)
            totals = self._totals()
            if totals == self._averaged and not (any(self._averages[0]) or self._tasks[STALLED]):
                self._period_end += (now - self._period_end) // PERIOD_NS * PERIOD_NS + PERIOD_NS
                break
            for averages, total, before in zip(
                self._averages, totals, self._averaged, strict=True
            ):
                sample = (total - before) * 100 * FIXED_1 // PERIOD_NS
                averages[:] = [
                    decayed(average, decay, sample)
                    for average, decay in zip(averages, DECAYS, strict=True)
                ]
            self._averaged = totals
            self._period_end += PERIOD_NS
        self._count(now)

    def _count(self, until: int) -> None:
        _, running, waiting, stalled = self._tasks
        span, self._since = until - self._since, until
        if stalled and span:
            threads = min(running + waiting + stalled, self._cpus)
            self._some[threads] += span * min(stalled, threads)
            self._full[threads] += span * min(threads - min(running, threads), stalled)


def decayed(average: int, decay: int, sample: int) -> int:
    """The next exponential average, in fixed point: `calc_load`, include/linux/sched/loadavg.h."""
    total = average * decay + sample * (FIXED_1 - decay)
    if sample >= average:
        total += FIXED_1 - 1
    return total // FIXED_1


class Stalls:
    """The state of one task, in all groups that it belongs to."""

    def __init__(self, *groups: Pressure) -> None:
        self._groups = groups
        self._state = IDLE
        for group in groups:
            group.join()

    def run(self) -> None:
        """The task runs or wants to. In a stall it is stalled all the same."""
        if self._state == IDLE:
            self._move(RUNNING)

    def rest(self) -> None:
        """The task has nothing to do. In a stall or a wait it is not idle."""
        if self._state == RUNNING:
            self._move(IDLE)

    def stalled(self) -> AbstractContextManager[None]:
        """While stalled on memory; a part of a stall is one too. Then the task runs or wants to."""
        return self._during(STALLED)

    def waiting(self) -> AbstractContextManager[None]:
        """While asleep on a device for other reasons than lack of memory."""
        return self._during(WAITING)

    @contextmanager
    def _during(self, state: int) -> Iterator[None]:
        if self._state == STALLED:
            yield
            return
        self._move(state)
        try:
            yield
        finally:
            self._move(RUNNING)

    def _move(self, state: int) -> None:
        before, self._state = self._state, state
        for group in self._groups:
            group.move(before, state)


class Gauge:
    """Reads a group, which has existed `since` so many ns, for one row after the other."""

    def __init__(self, pressure: Pressure, prefix: str, since: int = 0) -> None:
        self._pressure = pressure
        self._prefix = prefix
        self._last = since, 0, 0    # time, some, full

    def read(self, now: int) -> tuple[dict[str, int], dict[str, float]]:
        """The counters, and the ratios of the interval since the last time."""
        some, full = self._pressure.totals_ns()
        then, *before = self._last
        self._last = now, some, full
        prefix = self._prefix
        counters = {f"{prefix}_some_ns": some, f"{prefix}_full_ns": full}
        ratios: dict[str, float] = {}
        for kind, total, was, averages in zip(
            ("some", "full"), (some, full), before, self._pressure.averages(), strict=True
        ):
            if now > then:
                ratios[f"{prefix}_{kind}"] = (total - was) / (now - then)
            for window, average in zip(PSI_WINDOWS, averages, strict=True):
                ratios[f"{prefix}_{kind}_avg{window}"] = average
        return counters, ratios
