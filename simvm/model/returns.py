"""What comes back to the host after a guest has freed memory, and how soon.

A free begins a count that ends with the guest's next free. It counts what the host unmaps and
takes back of the guest's memory by whatever channel, to the end of the call that does it; not
what reclaim takes, nor a guest's end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from simvm.units import GIB


@dataclass
class GivenBack:
    """What came back after one free; times are ns from the free on."""

    at_ns: int
    freed_bytes: int
    returned_bytes: int = 0
    first_gib_ns: int | None = None
    last_ns: int | None = None

    def returned(self, now: int, size: int) -> None:
        """So many bytes have come back by now."""
        self.returned_bytes += size
        self.last_ns = now - self.at_ns
        if self.first_gib_ns is None and self.returned_bytes >= GIB:
            self.first_gib_ns = self.last_ns


class Frees:
    """The frees of a phase, added up: of one that follows a series there may be thousands."""

    def __init__(self) -> None:
        self._newest: GivenBack | None = None
        self._ended = Totals()

    def begin(self, now: int, size: int) -> GivenBack:
        """The phase frees `size` bytes: what counts what comes back of them from now on."""
        self._ended.add(self._newest)
        self._newest = GivenBack(now, size)
        return self._newest

    @property
    def totals(self) -> Totals:
        """Of all of them, as they stand now."""
        totals = replace(self._ended)
        totals.add(self._newest)
        return totals

    def as_dict(self) -> dict[str, int | None] | None:
        """For the summary of a phase: sums of bytes, means of times; None without a free."""
        totals = self.totals
        if not totals.freed_bytes:
            return None
        return {
            "freed_bytes": totals.freed_bytes,
            "returned_bytes": totals.returned_bytes,
            "first_gib_ns": totals.first_gib_ns // totals.firsts if totals.firsts else None,
            "last_ns": totals.last_ns // totals.lasts if totals.lasts else None,
        }


@dataclass
class Totals:
    """Sums over frees."""

    freed_bytes: int = 0
    returned_bytes: int = 0
    counted_bytes: int = 0
    """Returned, each free counting for no more than it freed."""
    first_gib_ns: int = 0
    firsts: int = 0
    last_ns: int = 0
    lasts: int = 0

    def add(self, free: GivenBack | None) -> None:
        """One free more, if there is one and it freed anything."""
        if free is None or not free.freed_bytes:
            return
        self.freed_bytes += free.freed_bytes
        self.returned_bytes += free.returned_bytes
        self.counted_bytes += min(free.returned_bytes, free.freed_bytes)
        if free.first_gib_ns is not None:
            self.first_gib_ns += free.first_gib_ns
            self.firsts += 1
        if free.last_ns is not None:
            self.last_ns += free.last_ns
            self.lasts += 1


def means(frees: Iterable[Frees]) -> dict[str, Any]:
    """Over frees: the share that came back, and mean times of those of which some did."""
    all_ = [each.totals for each in frees]
    freed, firsts, lasts = (
        sum(getattr(totals, name) for totals in all_) for name in ("freed_bytes", "firsts", "lasts")
    )
    return {
        "returned_share": sum(t.counted_bytes for t in all_) / freed if freed else None,
        "first_gib_back_ns": sum(t.first_gib_ns for t in all_) / firsts if firsts else None,
        "last_back_ns": sum(t.last_ns for t in all_) / lasts if lasts else None,
    }
