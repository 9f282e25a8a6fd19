"""The steps of a guest's memory use, from a recorded series or a generated one.

A diurnal series is a cosine: at the time t of the day, with its peak at p and the period T,

    used = low + (high - low) * min(1, max(0, (1 + cos(2 pi (t - p) / T)) / 2 + noise * n))

in whole 4 KiB pages, taken at the beginning of each step. n is a standard normal draw,
sqrt(c) of it shared by the class and sqrt(1 - c) the guest's own, each drawn anew at each step;
so the noise of two guests has the correlation c. A bursty series is an alternating renewal
process with exponential times, which begins in a burst with the probability on / (on + off).
Activity is used / high in both.

Draws hang on names (class, guest, phase) and on nothing else, so a guest's series does not depend
on the others, nor on when it comes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simvm.hardware.geometry import PAGE
from simvm.workload.patterns import random_bits
from simvm.workload.usage import FULL, open_usage, scaled

if TYPE_CHECKING:
    from simvm.scenario import BurstyUsage, DiurnalUsage, RecordedUsage, Usage

_DRAWN_AT_ONCE = 256


class Step(NamedTuple):
    """What is used, and how active the guest is, from `start_ns` to `end_ns` on the clock."""

    start_ns: int
    end_ns: int
    used_bytes: int
    cached_bytes: int | None
    activity: int
    """In millionths."""


@dataclass(frozen=True)
class Member:
    """A guest of a class, and the phase that asks."""

    seed: int
    class_: str
    index: int
    count: int
    phase: str

    def random(self, purpose: str, *, shared: bool) -> np.random.Generator:
        """A generator of the guest's own, or one that all guests of the class have alike."""
        whose = self.class_ if shared else f"{self.class_}.{self.index}"
        label = f"{whose}/{self.phase}/usage {purpose}"
        return np.random.Generator(random_bits(self.seed, label))


def steps(usage: Usage, member: Member, now: int) -> Iterator[Step]:
    """The steps from `now` on; without end but for a recorded series that does not loop."""
    match usage.kind:
        case "recorded":
            made = recorded(usage, member, now)
        case "diurnal":
            made = diurnal(usage, member)
        case "bursty":
            made = bursty(usage, member)
    return _from(made, now)


def _from(made: Iterator[Step], now: int) -> Iterator[Step]:
    """What is left of steps on the clock."""
    for step in made:
        if step.end_ns > now:
            yield step._replace(start_ns=max(step.start_ns, now))


def recorded(usage: RecordedUsage, member: Member, now: int) -> Iterator[Step]:
    """The rows of a file, the first of them at `now`, or as much before as the guest is ahead."""
    series = open_usage(usage.file)
    now -= _shift(usage.members, series.span_ns, member)
    times, used = series.time_ns.tolist(), series.used_bytes.tolist()
    cached = None
    if usage.cached and series.cached_bytes is not None:
        cached = series.cached_bytes.tolist()
    activity = series.activity.tolist() if series.activity is not None else None
    ends = [*times[1:], series.span_ns]
    while True:
        for i, (start, end) in enumerate(zip(times, ends, strict=True)):
            yield Step(
                now + start, now + end, scaled(used[i], usage.scale),
                None if cached is None else scaled(cached[i], usage.scale),
                FULL if activity is None else activity[i],
            )  # fmt: skip
        if not usage.loop:
            return
        now += series.span_ns


def diurnal(usage: DiurnalUsage, member: Member) -> Iterator[Step]:
    """From time 0 on."""
    shift = _shift(usage.members, usage.period, member)
    first, offset = divmod(shift, usage.step)
    correlation = usage.correlation
    if correlation is None:
        correlation = 1.0 if usage.members == "same" else 0.0
    noise = _noise(correlation, member) if usage.noise else None
    number = 0
    while True:
        at = (first + number) * usage.step - usage.peak_at
        share = (1 + math.cos(2 * math.pi * (at % usage.period) / usage.period)) / 2
        if noise is not None:
            share += usage.noise * next(noise)
        used = _between(usage.low, usage.high, share)
        start = number * usage.step - offset
        yield Step(
            max(0, start), start + usage.step, used, None, used * FULL // usage.high
        )
        number += 1


def _shift(members: str, period: int, member: Member) -> int:
    """How much earlier than the class a guest is, in ns."""
    if members == "shifted":
        return member.index * period // member.count
    if members == "independent":
        return int(member.random("shift", shared=False).integers(period))
    return 0


def _noise(correlation: float, member: Member) -> Iterator[float]:
    """A standard normal draw for each step."""
    shared, own = (member.random("noise", shared=each) for each in (True, False))
    while True:
        drawn = math.sqrt(correlation) * shared.standard_normal(_DRAWN_AT_ONCE)
        drawn += math.sqrt(1 - correlation) * own.standard_normal(_DRAWN_AT_ONCE)
        yield from drawn.tolist()


def _between(low: int, high: int, share: float) -> int:
    """So far from low to high, in whole pages, and never outside."""
    return low + round((high - low) // PAGE * min(1.0, max(0.0, share))) * PAGE


def bursty(usage: BurstyUsage, member: Member) -> Iterator[Step]:
    """From time 0 on."""
    random = member.random("bursts", shared=usage.members != "independent")
    behind = 0
    if usage.members == "shifted":
        behind = member.index * (usage.on + usage.off) // member.count
    on = bool(random.random() < usage.on / (usage.on + usage.off))
    start = -behind
    while True:
        end = start + max(1, int(random.exponential(usage.on if on else usage.off)))
        used = usage.high if on else usage.low
        if end > 0:
            yield Step(max(0, start), end, used, None, used * FULL // usage.high)
        start, on = end, not on
