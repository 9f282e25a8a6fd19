"""Where a vCPU's time goes: every nanosecond of elapsed time has one cause.

There is no residual bucket. What a vCPU is charged must equal what the clock says has
passed, and `Stopwatch` raises when it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

from simvm.columns import ELAPSED_PARTS
from simvm.errors import SimulationFailed

# One call for all parts: this is done before and after each stretch of work.
_values: Callable[[Account], tuple[int, ...]] = attrgetter(*ELAPSED_PARTS)


class Account:
    """Charged ns by cause, for one vCPU or a sum of them."""

    __slots__ = ELAPSED_PARTS
    # Those that are charged after every slice, and so by name.
    compute_ns: int
    translation_ns: int

    def __init__(self) -> None:
        for part in ELAPSED_PARTS:
            setattr(self, part, 0)

    def charge(self, part: str, ns: int) -> None:
        """Add `ns` to one cause. ValueError for time that runs back."""
        if ns < 0:
            raise ValueError(f"ns(={ns}) must be >= 0.")
        setattr(self, part, getattr(self, part) + ns)

    @property
    def elapsed_ns(self) -> int:
        """All that was charged."""
        return sum(_values(self))

    def parts(self) -> dict[str, int]:
        """ns by cause."""
        return dict(zip(ELAPSED_PARTS, _values(self), strict=True))


def difference(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    """What was charged in between, by cause."""
    return {part: after[part] - before[part] for part in ELAPSED_PARTS}


class Stopwatch:
    """Holds the clock against the account over one stretch of a vCPU's work."""

    def __init__(self, account: Account, now: int) -> None:
        self._account = account
        self._charged = account.elapsed_ns
        self._started = now

    def stop(self, now: int, what: str) -> int:
        """Elapsed ns. SimulationFailed when the charges do not add up to it."""
        elapsed = now - self._started
        charged = self._account.elapsed_ns - self._charged
        if elapsed != charged:
            raise SimulationFailed(
                f"{what}: {elapsed} ns passed on the clock, {charged} ns were charged to causes"
            )
        return elapsed
