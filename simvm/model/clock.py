"""Simulated time: SimPy's environment, whose clock shows whole nanoseconds."""

from __future__ import annotations

import simpy


class Clock(simpy.Environment):
    """SimPy's environment from time 0, for delays that are integer ns."""

    _now: int

    def __init__(self) -> None:
        super().__init__(initial_time=0)

    @property
    def now(self) -> int:
        """Simulated ns since the start."""
        return self._now
