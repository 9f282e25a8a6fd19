"""The two zones of a guest's memory, and the lists of free pages that its CPUs have of them.

Linux 6.1, mm/page_alloc.c: each CPU has a list of a zone's free pages. It is filled `batch` at a
time (zone_batchsize: a 4096th of the zone and 256 KiB at most, rounded to the nearest power of
two, less one), and holds no more than the CPU's share of the zone's low watermark
(zone_highsize), but four batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simvm.hardware.geometry import PAGE
from simvm.model.watermarks import Watermarks

if TYPE_CHECKING:
    from simvm.model.guest import Guest

ENOUGH_PAGES = 256   # SZ_1M, of which a batch is a quarter


@dataclass(frozen=True)
class Zone:
    """One of a guest's two zones of memory, and its watermarks."""

    lower: bool
    size: int
    marks: Watermarks

    @property
    def batch(self) -> int:
        """Pages that fill the list of a CPU at a time."""
        batch = max(1, min(self.size // PAGE >> 10, ENOUGH_PAGES) // 4)
        return max(1, (1 << (batch + batch // 2).bit_length() - 1) - 1)

    def high(self, cpus: int) -> int:
        """Pages that the list of one of so many CPUs holds at most."""
        return max(self.marks.low_bytes // PAGE // cpus, 4 * self.batch)


def zones_of(guest: Guest) -> list[Zone]:
    """DMA32 and Normal, those that the guest has: each with its share of the watermarks."""
    memory, lower = guest.config.memory, guest.lower_zone_bytes
    least, scale = guest.mm.watermarks.min_bytes, guest.mm.scale_factor
    return [
        Zone(is_lower, size, Watermarks.of(size, least * size // memory, scale))
        for is_lower, size in ((True, lower), (False, memory - lower))
        if size
    ]


def list_pages(guest: Guest) -> None:
    """Give each vCPU lists of its own of the guest's free pages."""
    cpus = guest.config.vcpus
    upper = lower = (1, 4, 0)   # of a zone that the guest does not have
    for zone in zones_of(guest):
        limits = (zone.batch, zone.high(cpus), zone.marks.low_bytes // PAGE)
        if zone.lower:
            lower = limits
        else:
            upper = limits
    guest.memory.use_lists((upper, lower), cpus)
