"""`sampled` fidelity: windows of real accesses are measured, the rest is drawn.

For each stream of a phase the vCPU takes turns: a *window* of accesses goes through the exact
core, with its real MMU and the mappings of the moment; then quanta of accesses are drawn
(`simvm/core/sampled.pxd`) and charged what the windows took.

* Windows follow one another, each twice as long as the last, until two agree and the standard
  error (of batch means) is small: by then TLBs and caches are warm. Then they come ever more
  rarely, until mappings have changed.
* A shootdown empties the guest's part of a TLB. What the accesses after it take is measured
  in steps of growing length, and charged as often as shootdowns come.
* The quantum grows while little is taken away from the guest and shrinks when much is, so
  that a page is seldom wanted again within the quantum in which it went.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from simvm import _core
from simvm.units import MS

if TYPE_CHECKING:
    from simvm.hardware.geometry import MmuGeometry
    from simvm.model.vcpu import VirtualCpu, Work
    from simvm.scenario.models import Meta

Counts = np.ndarray[tuple[int], np.dtype[np.uint64]]

SHORTEST: Final = 4096
LONGEST: Final = 1 << 20
"""Accesses of a window."""

BATCHES: Final = 16
"""Of a window, whose means give its standard error."""

COLD: Final = (128, 128, 256, 512, 1024, 2048)
"""Accesses of the steps that are measured after a shootdown."""

FIRST_GAP, LAST_GAP = 16, 65_536
"""Accesses between windows, in windows."""

ENOUGH: Final = 0.005
AGREE: Final = 0.01
"""Shares of an access's time: a standard error that is small enough, and a difference of two
windows that does not say that the later one was warmer."""

MOST_WINDOWS: Final = 32

CHANGED: Final = 0.02
"""The share of mapped pages whose leaf is of another size by which an estimate is out of date."""

SOON: Final = 0.1
"""Of the time after which a page that was taken away is wanted again: a quantum."""

LATELY: Final = 0.9
"""The weight of what was until now, when a quantum adds its shootdowns and accesses."""

_MISSES: Final = 3    # tlb_misses in `Counts`


class Window(NamedTuple):
    """What some accesses took."""

    accesses: int
    cycles: int
    counts: Counts

    @property
    def mean(self) -> float:
        """Cycles of translation an access."""
        return self.cycles / self.accesses


def joined(windows: Sequence[Window]) -> Window:
    """Several windows as one."""
    return Window(
        sum(window.accesses for window in windows), sum(window.cycles for window in windows),
        np.add.reduce([window.counts for window in windows]),
    )  # fmt: skip


def standard_error(windows: Sequence[Window]) -> float:
    """Of the mean of windows of one length."""
    means = [window.mean for window in windows]
    mean = sum(means) / len(means)
    return sqrt(sum((each - mean) ** 2 for each in means) / (len(means) - 1) / len(means))


class Sampling:
    """How the accesses of one stream are sampled, in whatever vCPU's turn."""

    def __init__(
        self, touches: _core.Touches, geometry: MmuGeometry, meta: Meta,
        before: Sampling | None = None,
    ) -> None:  # fmt: skip
        """`before` is of the stream that this one follows: what it measured holds until it
        changes."""
        self.touches = touches
        self._meta = meta
        self._entries = max((array.entries for array in geometry.l2 or geometry.l1_load), default=0)
        self._quantum = max(meta.quantum, MS)
        self._mapped: tuple[int, ...] = ()
        self._drawn_at = 0
        self._paused = False        # the last step ended because it had no more to do
        # windows
        self._size = SHORTEST       # of the next one
        self._plan: list[int] = [SHORTEST // BATCHES] * BATCHES
        self._n_cold = 0            # how many steps of the plan are the first after a shootdown
        self._part: Window | None = None
        self._batches: list[Window] = []
        self._steps: list[Window] = []
        self._cold: list[Window] = []
        self._pool: list[tuple[Window, float]] = []     # with their standard errors
        self._gap = FIRST_GAP
        self._until_window = 0
        self._mean = 0.0            # cycles of translation an access
        self._error = 0.0           # ... and its standard error
        self._error_rest = 0.0
        # shootdowns
        self._interruptions = -1    # not known yet
        self._accesses_at = 0
        self._lately = 0.0, 0.0     # shootdowns, and accesses
        self._between = 0           # accesses from one to the next; 0: there are none
        if before is not None and before._pool:
            self._size, self._gap, self._pool = before._size, before._gap, before._pool
            self._cold, self._mean, self._error = before._cold, before._mean, before._error
            self._mapped, self._quantum = before._mapped, before._quantum
            self._until_window = before._until_window
            self._plan = []
            self._tell()

    def step(self, vcpu: VirtualCpu, work: Work, left: int, train: int) -> int:
        """Do up to `left` accesses of the work: why the core stopped, as `Vcpu.run` says it."""
        if self._interruptions < 0:
            self._interruptions = vcpu.interruptions
        if vcpu.guest.config.per_cpu_lists:
            vcpu.guest.memory.run_on(vcpu.index)
        if self._plan and self.touches.idle:
            return self._measure(vcpu, work, left, train)
        env, core = vcpu.guest.host.env, vcpu.core
        exposed = work.phase.walk_exposed
        per_access = max(1.0, work.phase.cycles_per_access + self._mean * exposed)
        if self.touches.idle:
            self._adapt(vcpu, work, per_access)
            self._drawn_at = env.now
        elif self._paused and env.now - self._drawn_at > 2 * self._quantum:
            self.touches.forget()       # others have had time to change what was drawn
            self._paused = False
            return _core.RUN_DEADLINE
        cycles = max(1, self._quantum * vcpu.khz // 1_000_000)
        ahead = int(cycles / per_access)
        before = core.done
        vcpu.sampled_turns += 1
        reason = core.play(
            work.space.core, vcpu.guest.backing, vcpu.guest.memory, work.region.core,
            self.touches, left, cycles, max(1, ahead), train, self._meta.train_service,
        )  # fmt: skip
        self._paused = reason == _core.RUN_BUDGET
        done = core.done - before
        self._until_window -= done
        self._error_rest += done * self._error * exposed * 1_000_000 / vcpu.khz
        whole = int(self._error_rest)
        self._error_rest -= whole
        vcpu.translation_error_ns += whole
        if self._until_window <= 0:
            self._begin_window()
        return reason

    def release(self) -> None:
        """Its work is done; what was measured stays for the one that follows."""
        del self.touches

    # --- windows ------------------------------------------------------------------------

    def _begin_window(self) -> None:
        self._plan = [self._size // BATCHES] * BATCHES
        self._batches = []

    def _measure(self, vcpu: VirtualCpu, work: Work, left: int, train: int) -> int:
        """Run accesses of the step of the plan that is under way."""
        core = vcpu.core
        struck = vcpu.interruptions != self._interruptions
        if struck and self._part is None and not self._n_cold and self._gap > FIRST_GAP:
            self._note_interruptions(vcpu)
            self._plan = [*COLD, *self._plan]
            self._n_cold = len(COLD)
            self._steps = []
        part = self._part or Window(0, 0, np.zeros_like(core.counts()))
        done, cycles, counts = core.done, core.raw_cycles, core.counts()
        reason = core.run(
            work.space.core, vcpu.guest.backing, vcpu.guest.memory, work.region.core, work.stream,
            min(left, self._plan[0] - part.accesses), 1 << 40, train, self._meta.train_service,
        )  # fmt: skip
        vcpu.window_turns += 1
        vcpu.window_accesses += core.done - done
        part = self._part = Window(
            part.accesses + core.done - done,
            part.cycles + core.raw_cycles - cycles,
            part.counts + (core.counts() - counts),
        )
        if part.accesses == self._plan[0]:
            self._part = None
            self._plan.pop(0)
            if self._n_cold:
                self._n_cold -= 1
                self._steps.append(part)
                if not self._n_cold:
                    self._cold = self._steps
            else:
                self._batches.append(part)
                if not self._plan:
                    self._end_window(vcpu, work)
        return reason

    def _end_window(self, vcpu: VirtualCpu, work: Work) -> None:
        """What an access takes, from this window, and from earlier ones that agree with it."""
        window, error = joined(self._batches), standard_error(self._batches)
        exposed = work.phase.walk_exposed
        time = work.phase.cycles_per_access + window.mean * exposed
        settled = False
        if self._pool:
            last, last_error = self._pool[-1]
            apart = abs(window.mean - last.mean)
            settled = apart * exposed <= max(
                AGREE * time, 2 * sqrt(error**2 + last_error**2) * exposed
            )
        self._pool = [*(self._pool if settled else []), (window, error)][-MOST_WINDOWS:]
        whole = joined([each for each, _ in self._pool])
        self._mean = whole.mean
        self._error = sqrt(sum((each.accesses * e) ** 2 for each, e in self._pool)) / whole.accesses
        if settled and self._error * exposed <= ENOUGH * time:
            self._gap = min(self._gap * 2, LAST_GAP)
            self._until_window = self._gap * self._size
        else:
            self._gap = FIRST_GAP
            self._size = min(self._size * 2, LONGEST)
            self._until_window = 0 if not settled else FIRST_GAP * self._size
            if not settled:
                self._begin_window()
        self._mapped = self._leaves(vcpu)
        self._tell()

    def _tell(self) -> None:
        """Let the core charge the estimate, with a cold start after each shootdown."""
        accesses, cycles, counts = joined([window for window, _ in self._pool])
        misses = int(counts[_MISSES])
        residence = self._entries * accesses / misses if misses else float(1 << 52)
        if self._between and self._cold:
            steps = [self._cold[0]]
            for step in self._cold[1:]:
                if joined([*steps, step]).accesses <= self._between:
                    steps.append(step)
            cold = joined(steps)
            warm = max(0, self._between - cold.accesses)
            cycles = cold.cycles + cycles * warm // accesses
            counts = cold.counts + counts * np.uint64(warm) // np.uint64(accesses)
            accesses = cold.accesses + warm
        self._mean = cycles / accesses
        self.touches.set_estimate(
            accesses, cycles, counts, residence, 1 / self._between if self._between else 0.0
        )

    # --- change -------------------------------------------------------------------------

    def _adapt(self, vcpu: VirtualCpu, work: Work, per_access: float) -> None:
        """Between two quanta: see what the host has changed meanwhile."""
        host = vcpu.guest.host
        leaves = self._leaves(vcpu)
        mapped = max(1, sum(leaves))
        changed = sum(abs(a - b) for a, b in zip(leaves, self._mapped or leaves, strict=True))
        if changed > CHANGED * mapped:
            self._pool = []
            self._gap, self._size = FIRST_GAP, max(SHORTEST, self._size // 8)
            self._mapped = leaves
            self._begin_window()
        self._note_interruptions(vcpu)
        self._quantum *= 2
        longest = min(self._meta.quantum_max, self._meta.sample_interval, host.reclaimer.look_ns)
        if host.cores.contended:
            longest = min(longest, host.costs.timeslice_ns)
        gone, share = self.touches.gone
        if share > 0.0:
            wanted = gone / share / work.phase.threads * per_access * 1_000_000 / vcpu.khz
            longest = min(longest, int(wanted * SOON))
        self._quantum = max(self._meta.quantum, min(self._quantum, longest))

    def _note_interruptions(self, vcpu: VirtualCpu) -> None:
        """How often shootdowns come, in accesses: lately."""
        new = vcpu.interruptions - self._interruptions
        accesses = vcpu.core.done - self._accesses_at
        self._interruptions, self._accesses_at = vcpu.interruptions, vcpu.core.done
        self._lately = LATELY * self._lately[0] + new, LATELY * self._lately[1] + accesses
        shootdowns, over = self._lately
        between = int(over / shootdowns) if shootdowns > 0.01 else 0
        known = self._between
        if (between == 0) != (known == 0) or abs(between - known) > known // 5:
            self._between = between
            if self._pool:
                self._tell()

    @staticmethod
    def _leaves(vcpu: VirtualCpu) -> tuple[int, ...]:
        """4 KiB pages that the host's leaves of each size map."""
        return tuple(n << (9 * order) for order, n in enumerate(vcpu.guest.slat.leaves))
