"""When a timer of a Linux kernel goes off: later than asked, by the grain of the timer wheel.

The wheel has levels of 64 buckets, each eight times as coarse as the one below. A timer goes
into the level that reaches as far as it asks, and off at the end of its bucket: so one of two
seconds at 1000 ticks a second goes off up to 64 ms late. Linux, kernel/time/timer.c.

Left out: what puts a timer off beyond that (a core that sleeps, a busy softirq).
"""

from __future__ import annotations

_BUCKETS = 64
_COARSER = 3  # bits from one level to the next
_LEVELS = 9


def expiry(now: int, delay: int) -> int:
    """The tick in which a timer goes off that is set in tick `now` for `delay` ticks later."""
    level = 0
    while level + 1 < _LEVELS and delay >= (_BUCKETS - 1) << (level * _COARSER):
        level += 1
    grain = level * _COARSER
    return (((now + delay) >> grain) + 1) << grain


def wait_ns(now_ns: int, delay_ns: int, ticks_per_s: int) -> int:
    """How long after `now_ns` a timer for `delay_ns` (whole ticks, rounded up) goes off."""
    tick = 1_000_000_000 // ticks_per_s
    return expiry(now_ns // tick, -(-delay_ns // tick)) * tick - now_ns
