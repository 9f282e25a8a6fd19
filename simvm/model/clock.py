"""Simulated time: SimPy's environment, whose clock shows whole nanoseconds."""

from __future__ import annotations

import simpy


class Clock(simpy.Environment):
    """SimPy's environment from time 0, for delays that are integer ns."""

    _now: int

    def __init__(self) -> None:
        super().__init__(initial_time=0)
        self._asked = 0

    @property
    def now(self) -> int:
        """Simulated ns since the start."""
        return self._now

    @property
    def events(self) -> int:
        """Events scheduled so far. SimPy numbers them; asking takes a number and no more."""
        self._asked += 1
        return next(self._eid) - self._asked + 1
