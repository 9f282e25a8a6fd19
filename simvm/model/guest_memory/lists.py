"""Which of its pages a guest's kernel takes: two pairs of lists (Linux, mm/vmscan.c).

The pages of programs and those of files have an inactive and an active list each. New pages
start inactive. The active list gives its oldest pages up, used or not, while the inactive one
is small: below active / sqrt(10 x GiB of both). A program's page that was used since the last
look is activated; a file's page is activated by its second read (mark_page_accessed), so
reclaim takes whatever it finds at the old end.
"""

from __future__ import annotations

from math import isqrt
from typing import NamedTuple

from simvm import _core
from simvm.hardware.geometry import PAGE
from simvm.model.policies.base import CLUSTER_PAGES

ANON, FILE = 1, 3       # the inactive lists; an active list is the next one
MOST_SWAPPY = 200
TRIM_SHIFT = 12         # DEF_PRIORITY


class Taken(NamedTuple):
    """What one look at a pair of lists came to."""

    evict: list[int]
    scanned: int
    activated: int


def inactive_is_low(kernel: _core.GuestKernel, which: int) -> bool:
    """inactive_is_low, mm/vmscan.c."""
    inactive, active = kernel.list_bytes(which), kernel.list_bytes(which + 1)
    return inactive * (isqrt(10 * ((active + inactive) >> 30)) or 1) < active


def look(kernel: _core.GuestKernel, which: int) -> Taken:
    """Look at the old ends of a pair of lists; pages to keep have moved."""
    scanned = 0
    if inactive_is_low(kernel, which):
        aged = kernel.scan(which + 1, CLUSTER_PAGES)
        kernel.move([page for page, _ in aged], which)
        scanned += len(aged)
    old = kernel.scan(which, CLUSTER_PAGES)
    keep = [page for page, used in old if used and which == ANON]
    kernel.move(keep, which + 1)
    evict = [page for page, used in old if not used or which == FILE]
    return Taken(evict, scanned + len(old), len(keep))


class Balance:
    """Whether programs or files give next (get_scan_count).

    Without room on the swap device files alone; while a 4096th of the inactive files is a
    page or more, and they are not few, files alone as well (cache_trim_mode); else in
    proportion: `swappiness` to 200 less `swappiness`.
    """

    def __init__(self, kernel: _core.GuestKernel, swappiness: int) -> None:
        self._kernel = kernel
        self._swappiness = swappiness
        self._turn = 0

    def next(self, can_swap: bool) -> int:
        kernel = self._kernel
        inactive = kernel.list_bytes(FILE)
        if not can_swap:
            return FILE
        if not inactive + kernel.list_bytes(FILE + 1):
            return ANON
        if inactive // PAGE >> TRIM_SHIFT and not inactive_is_low(kernel, FILE):
            return FILE
        self._turn += self._swappiness
        if self._turn < MOST_SWAPPY:
            return FILE
        self._turn -= MOST_SWAPPY
        return ANON
