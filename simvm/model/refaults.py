"""How far back pages were reclaimed that are wanted again: the distribution of refault distances.

The distance is what was evicted between a page's eviction and its return (mm/workingset.c), so
memory larger by that much would have kept the page. Kept as counts by powers of two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from simvm.hardware.geometry import PAGE


class RefaultDistances:
    """Distances of the pages that came back to one guest."""

    def __init__(self) -> None:
        self._pages = 0
        self._by_magnitude: Counter[int] = Counter()

    def add(self, pages: int) -> None:
        """A page came back after `pages` of 4 KiB were evicted."""
        self._pages += pages
        self._by_magnitude[max(pages - 1, 0).bit_length()] += 1

    @classmethod
    def sum(cls, each: Iterable[RefaultDistances]) -> RefaultDistances:
        """The distances of several guests together."""
        whole = cls()
        for one in each:
            whole._pages += one._pages
            whole._by_magnitude += one._by_magnitude
        return whole

    def summary(self) -> dict[str, Any]:
        """Count, mean, and how many are larger than half of `up_to_bytes` and no larger than it."""
        count = self._by_magnitude.total()
        return {
            "count": count,
            "mean_bytes": self._pages * PAGE // count if count else None,
            "histogram": [
                {"up_to_bytes": PAGE << magnitude, "count": self._by_magnitude[magnitude]}
                for magnitude in sorted(self._by_magnitude)
            ],
        }
