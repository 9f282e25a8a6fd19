"""What DAMON knows of one guest's memory, and what it thinks cold: mm/damon/core.c, reclaim.c.

Memory is a row of regions. In each, one page at random is looked at per sampling interval,
and stands for all of the region. After an aggregation interval neighbours that were accessed
about as often are merged, cold regions are chosen, and what is left is split at random, so
that the number of looks stays between bounds whatever the memory's size.

Simplified: each guest has regions of its own between the bounds, in guest-physical addresses
(Linux has one row for all of RAM); cold regions are taken the oldest first, where Linux ranks
them by a histogram of scores, in which all that are older than half a minute are alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from simvm.hardware.geometry import PAGE

if TYPE_CHECKING:
    from simvm.scenario.reclaim import DamonReclaim

Ranges = Sequence[tuple[int, int]]
"""Monitored addresses: (start, end) of each range, in order."""


class Region:
    """Neighbouring pages taken to be accessed alike."""

    __slots__ = ("age", "end", "last", "seen", "start")

    def __init__(self, start: int, end: int, last: int = 0, age: int = 0) -> None:
        self.start = start
        self.end = end
        self.seen = 0       # samples in this aggregation in which its page was accessed
        self.last = last    # ... and in the one before
        self.age = age      # aggregations since that changed much

    @property
    def size(self) -> int:
        return self.end - self.start


class Monitor:
    """The regions of one guest."""

    def __init__(self, settings: DamonReclaim, random: np.random.Generator) -> None:
        self._most = settings.max_regions
        self._least = settings.min_regions
        self._samples = settings.aggregation_interval // settings.sample_interval
        self._old = -(-settings.min_age // settings.aggregation_interval)
        self._random = random
        self._ranges: Ranges = ()
        self._before = 0        # regions when it last split
        self.regions: list[Region] = []
        self._changed()

    def watch(self, ranges: Ranges) -> None:
        """Monitor these ranges; what was known of them stays known."""
        if ranges == self._ranges:
            return
        known, self._ranges = self.regions, ranges
        step = max(PAGE, sum(end - start for start, end in ranges) // self._least // PAGE * PAGE)
        self.regions = []
        for start, end in ranges:
            at = start
            for region in known:
                low, high = max(region.start, at), min(region.end, end)
                if low < high:
                    self.regions += _fresh(at, low, step)
                    self.regions.append(Region(low, high, region.last, region.age))
                    at = high
            self.regions += _fresh(at, end, step)
        self._changed()

    def pick(self) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """The address of one page of each region, at random."""
        pages = self._random.integers(0, self._pages, dtype=np.uint64)
        return self._starts + pages * np.uint64(PAGE)

    def note(self, accessed: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
        """Which of the picked pages were accessed."""
        for number in np.flatnonzero(accessed):
            self.regions[number].seen += 1

    def merge(self) -> None:
        """The aggregation is over: ages, and neighbours that are alike become one region."""
        near = self._samples // 10
        for region in self.regions:
            changed = abs(region.seen - region.last) > near
            changed = changed or (region.seen == 0) != (region.last == 0)
            region.age = 0 if changed else region.age + 1
        largest = max(PAGE, sum(region.size for region in self.regions) // self._least)
        while True:
            merged: list[Region] = []
            for region in self.regions:
                if merged and _alike(merged[-1], region, near, largest):
                    _join(merged[-1], region)
                else:
                    merged.append(region)
            self.regions = merged
            if len(merged) <= self._most or near >= self._samples:
                return
            near = max(1, near * 2)

    def cold(self) -> Iterator[Region]:
        """Regions without an access for `min_age`, the oldest first."""
        found = [each for each in self.regions if each.seen == 0 and each.age >= self._old]
        yield from sorted(found, key=lambda region: -region.age)

    def cut(self, region: Region, size: int) -> None:
        """Shorten a region to `size`; the rest becomes one of its own."""
        rest = Region(region.start + size, region.end, region.last, region.age)
        rest.seen = region.seen
        region.end = rest.start
        self.regions.insert(self.regions.index(region) + 1, rest)

    def begin(self) -> None:
        """Split regions, while there are few, and begin a new aggregation."""
        for region in self.regions:
            region.last, region.seen = region.seen, 0
        count = len(self.regions)
        if count <= self._most // 2:
            parts = 3 if count == self._before and count < self._most // 3 else 2
            self.regions = [
                part for region in self.regions for part in self._split(region, parts)
            ]
        self._before = count
        self._changed()

    def hot_bytes(self) -> int:
        """Bytes of regions that were accessed in the last aggregation."""
        return sum(region.size for region in self.regions if region.last)

    def are_hot(self, addresses: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> int:
        """How many of `addresses` lie in such regions."""
        hot = [region for region in self.regions if region.last]
        starts = np.array([region.start for region in hot], dtype=np.uint64)
        ends = np.array([region.end for region in hot], dtype=np.uint64)
        # So many hot regions begin at an address or before, and so many have ended.
        begun = np.searchsorted(starts, addresses, side="right")
        ended = np.searchsorted(ends, addresses, side="right")
        return int((begun > ended).sum())

    def _split(self, region: Region, parts: int) -> Iterator[Region]:
        """The left part at random between a tenth and nine, and, of three, that part again."""
        right: list[Region] = []
        for _ in range(parts - 1):
            size = region.size * int(self._random.integers(1, 10)) // 10 // PAGE * PAGE
            if region.size > 2 * PAGE and size:
                middle = region.start + size
                right.append(Region(middle, region.end, region.last, region.age))
                region.end = middle
        yield region
        yield from reversed(right)

    def _changed(self) -> None:
        starts = [region.start for region in self.regions]
        self._starts = np.array(starts, dtype=np.uint64)
        self._pages = np.array([each.size // PAGE for each in self.regions], dtype=np.uint64)


def _fresh(start: int, end: int, step: int) -> Iterator[Region]:
    """New regions of `step` bytes, the last one longer if need be."""
    while start < end:
        stop = end if end - start < 2 * step else start + step
        yield Region(start, stop)
        start = stop


def _alike(left: Region, right: Region, near: int, largest: int) -> bool:
    return (
        left.end == right.start
        and abs(left.seen - right.seen) <= near
        and left.size + right.size <= largest
    )


def _join(left: Region, right: Region) -> None:
    """Means weighted by size."""
    total = left.size + right.size
    left.seen = (left.seen * left.size + right.seen * right.size) // total
    left.last = (left.last * left.size + right.last * right.size) // total
    left.age = (left.age * left.size + right.age * right.size) // total
    left.end = right.end


class Quota:
    """How much may be paged out in each interval: by time, and by size (`damos_quota`).

    The time becomes a size by how fast paging out has been, 4 MiB a ms until that is known.
    """

    FIRST_BYTES_PER_MS = 1024 * PAGE

    def __init__(self, settings: DamonReclaim) -> None:
        self._time = settings.quota_time
        self._size = settings.quota_size
        self._interval = settings.quota_interval
        self._since: int | None = None
        self._all_bytes = 0
        self._all_ns = 0
        self._left = 0

    def left(self, now: int) -> int:
        """Bytes that may still be tried in this interval."""
        if self._since is None or now - self._since >= self._interval:
            self._since = now
            rate = self.FIRST_BYTES_PER_MS
            if self._all_ns:
                rate = self._all_bytes * 1_000_000 // self._all_ns
            self._left = max(PAGE, min(rate * self._time // 1_000_000, self._size))
        return self._left // PAGE * PAGE

    def charge(self, size: int, ns: int) -> None:
        """`size` bytes were tried, which took `ns`."""
        self._left -= size
        self._all_bytes += size
        self._all_ns += ns


class FreeShare:
    """Whether DAMON is at work: by the share of memory that is free (`damos_watermarks`)."""

    def __init__(self, settings: DamonReclaim) -> None:
        self._high, self._mid = settings.watermark_high, settings.watermark_mid
        self._low = settings.watermark_low
        self._active = False

    def allow(self, free: int, memory: int) -> bool:
        """Above high there is no need, below low no time; it begins below mid."""
        share = free / memory
        if share > self._high or share < self._low:
            self._active = False
        elif share < self._mid:
            self._active = True
        return self._active
