"""What comes back to the host after a guest has freed memory, and how soon.

A free begins a count that ends with the guest's next free. It counts what the host unmaps and
takes back of the guest's memory by whatever channel, to the end of the call that does it; not
what reclaim takes, nor a guest's end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
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

    def as_dict(self) -> dict[str, int | None]:
        """For the summary of a phase."""
        return {
            "freed_bytes": self.freed_bytes,
            "returned_bytes": self.returned_bytes,
            "first_gib_ns": self.first_gib_ns,
            "last_ns": self.last_ns,
        }


def means(frees: Iterable[GivenBack | None]) -> dict[str, Any]:
    """Over frees: the share that came back, and mean times of those of which some did."""
    counted = [free for free in frees if free is not None and free.freed_bytes]
    freed = sum(free.freed_bytes for free in counted)
    returned = sum(min(free.returned_bytes, free.freed_bytes) for free in counted)
    return {
        "returned_share": returned / freed if freed else None,
        "first_gib_back_ns": _mean(free.first_gib_ns for free in counted),
        "last_back_ns": _mean(free.last_ns for free in counted),
    }


def _mean(times: Iterable[int | None]) -> float | None:
    known = [time for time in times if time is not None]
    return sum(known) / len(known) if known else None
