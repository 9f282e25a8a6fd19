"""khugepaged in the guest: huge pages where faults left small ones (Linux, mm/khugepaged.c).

Every `scan_sleep` it looks at `pages_to_scan` entries of regions that may have huge pages. Two
MiB of which at most `max_ptes_none` pages are missing become one page: a block is taken, or
made by compaction; the pages are copied to it, so that the host has to back it; the mapping
changes, and the old pages are free, and still backed. What was missing is new memory.

Left out: swapping pages in to collapse around them (a range with one on the swap device is
passed over, where Linux takes up to 64); compaction for faults, and kcompactd.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simvm import _core
from simvm.hardware.geometry import BLOCK, PAGE
from simvm.model.guest_memory.threads import GuestThread
from simvm.model.queues import Process

if TYPE_CHECKING:
    from simvm.model.guest_memory.manager import GuestMemory
    from simvm.model.spaces import NamedRegion
    from simvm.scenario.guest_memory import GuestKhugepaged as Settings

PTES = BLOCK // PAGE


class Khugepaged:
    """The thread of one guest."""

    def __init__(self, mm: GuestMemory, kernel: _core.GuestKernel, settings: Settings) -> None:
        self._mm = mm
        self._guest = mm.guest
        self._kernel = kernel
        self._settings = settings
        self._costs = mm.guest.host.costs
        self._bandwidth = mm.guest.host.costs.copy_bandwidth_bytes_per_s
        self._at = 0            # ranges passed since the first
        self.collapses = 0

    def serve(self) -> Process:
        """Scan, sleep, and so on."""
        thread = GuestThread(self._guest)
        while True:
            yield from thread.sleep(self._settings.scan_sleep)
            yield from self._pass(thread)

    def _ranges(self) -> list[tuple[NamedRegion, int]]:
        """The 2 MiB that may become huge, in order: regions by age."""
        return [
            (region, va)
            for region in self._guest.regions.values() if region.may_be_huge
            for va in range(region.core.base, region.core.base + region.core.size, BLOCK)
        ]  # fmt: skip

    def _pass(self, thread: GuestThread) -> Process:
        ranges = self._ranges()
        left = self._settings.pages_to_scan
        for _ in range(len(ranges)):
            if left <= 0:
                break
            region, va = ranges[self._at % len(ranges)]
            self._at = self._at % len(ranges) + 1
            mapped = self._mapped(region, va)
            left -= 1 if mapped is None else PTES
            yield from thread.spend(self._costs.khugepaged_scan_ns)
            if self._fits(mapped):
                yield from self._collapse(thread, region, va)

    def _mapped(self, region: NamedRegion, va: int) -> int | None:
        """Small pages mapped there; None: none, or no longer."""
        alive = self._guest.regions.get((region.process, region.name)) is region
        if not alive or va >= region.core.base + region.core.size:
            return None
        return self._kernel.mapped_around(self._guest.processes[region.process].core.asid, va)

    def _fits(self, mapped: int | None) -> bool:
        return mapped is not None and mapped > 0 and PTES - mapped <= self._settings.max_ptes_none

    def _collapse(self, thread: GuestThread, region: NamedRegion, va: int) -> Process:
        guest, kernel = self._guest, self._kernel
        block = yield from self._block(thread)
        if block is None:
            return
        yield from thread.write([block], BLOCK)
        yield from thread.spend(self._costs.thp_collapse_ns + self._copy_ns(BLOCK))
        if not self._fits(self._mapped(region, va)):
            guest.memory.free_2m(block)
            return
        space = guest.processes[region.process]
        assert space.table is not None
        old = []
        if guest.shadow is not None:
            leaves = [space.table.lookup(va + page * PAGE) for page in range(PTES)]
            old = [leaf.target for leaf in leaves if leaf is not None]
        kernel.collapse(space.core.asid, va, block)
        guest.channel.reclaimed(guest)
        self._mm.unmapped(space.core.asid, va, BLOCK, old)
        guest.note_backed()
        self.collapses += 1
        yield from thread.spend(self._mm.shoot_down())

    def _copy_ns(self, size: int) -> int:
        """Copying pages; what is zeroed instead is taken for as dear."""
        return size * 1_000_000_000 // self._bandwidth

    def _block(self, thread: GuestThread) -> Process:
        """A whole block, or None: what is free, or a broken one that could be emptied."""
        memory = self._guest.memory
        if self._mm.spare_bytes < BLOCK:
            return None
        if not memory.free_blocks and self._settings.defrag:
            yield from self._compact(thread)
        if not memory.free_blocks:
            return None
        return memory.allocate_2m()

    def _compact(self, thread: GuestThread) -> Process:
        whole, scanned, moved = self._kernel.compact()
        yield from thread.spend(scanned * self._costs.reclaim_scan_ns)
        if not whole:
            return
        targets: list[int] = []
        for source, target, asid, va in moved.tolist():
            targets.append(target)
            if asid:
                self._mm.unmapped(asid, va, PAGE, [source])
        self._guest.pages_moved += len(targets)
        yield from thread.write(targets)
        each = self._costs.page_migration_ns + self._copy_ns(PAGE)
        yield from thread.spend(len(targets) * each + self._mm.shoot_down())
