"""khugepaged: joins the 4 KiB pages of an aligned 2 MiB range into one huge page.

After mm/khugepaged.c. The thread goes round all guests, some ranges at a time, and sleeps
in between. A range is joined when few enough of its pages are missing or on the swap device,
none is held by somebody else, and one at least was accessed (half of them, if some have to
be read). That takes a free block, which compaction is asked for; a copy of what is there,
zeroing of what is missing, and a shootdown. Faults of the guest wait meanwhile, since the
address space is locked. If no block is to be had it sleeps long.

Left out: the SLAT's own fault after a collapse (one table mirrors the other), pages that
processes share or that lie in slower memory, and under shadow paging the A bits, where every
page counts as accessed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simvm.hardware.geometry import BLOCK, PAGE
from simvm.model.queues import Process

if TYPE_CHECKING:
    from simvm.model.guest import Guest
    from simvm.model.host import Host
    from simvm.scenario import Khugepaged

RANGE_PAGES = BLOCK // PAGE


class HugePageDaemon:
    """The thread khugepaged of the host."""

    def __init__(self, host: Host, settings: Khugepaged) -> None:
        self._host = host
        self._settings = settings
        self._owner = 0       # whose memory is looked at
        self._address = 0     # from where on
        self.cpu_ns = 0
        host.env.process(self._run())

    def _run(self) -> Process:
        env, settings = self._host.env, self._settings
        while True:
            yield env.timeout(settings.scan_sleep)
            looked = cost = 0
            for _ in range(-(-settings.pages_to_scan // RANGE_PAGES)):
                found = self._next()
                if found is None:
                    break
                guest, address = found
                looked += 1
                if guest.backing.look_at(address) is None:
                    continue
                cost += self._host.costs.khugepaged_scan_ns
                if self._good(guest, address):
                    yield from self._work(cost)
                    cost = 0
                    if not (yield from self._collapse(guest, address)):
                        yield env.timeout(settings.alloc_sleep)
            if looked:
                yield from self._work(cost)

    def _work(self, ns: int) -> Process:
        """Take host CPU time."""
        if ns:
            core = yield from self._host.cores.acquire()
            yield self._host.env.timeout(ns)
            self._host.cores.release(core)
            self.cpu_ns += ns

    def _next(self) -> tuple[Guest, int] | None:
        """The next range of 2 MiB; None when there is no more until the next round."""
        for owner in sorted(owner for owner in self._host.guests if owner >= self._owner):
            guest = self._host.guests[owner]
            at = self._address if owner == self._owner else 0
            for start, end in guest.mapped_ranges():
                first = max(-(-start // BLOCK) * BLOCK, at)
                if first + BLOCK <= end:
                    self._owner, self._address = owner, first + BLOCK
                    return guest, first
        self._owner = self._address = 0
        return None

    def _good(self, guest: Guest, address: int) -> bool:
        """Whether a range may and should become one page (`hpage_collapse_scan_pmd`)."""
        if not guest.alive or not guest.backing.may_be_huge(address):
            return False
        pages = guest.backing.look_at(address)
        if pages is None:
            return False
        _, none, swapped, accessed, fixed = pages
        if fixed or none > self._settings.max_ptes_none or swapped > self._settings.max_ptes_swap:
            return False
        return accessed > 0 and (swapped == 0 or accessed >= RANGE_PAGES // 2)

    def _collapse(self, guest: Guest, address: int) -> Process:
        """Make one page of a range; False when there was no block for it."""
        host, costs = self._host, self._host.costs
        yield from self._swap_in(guest, address)
        if not self._good(guest, address):
            return True
        frame, cost = self._block()
        pages = guest.backing.look_at(address)
        if frame is None or pages is None or pages[2]:
            if frame is not None:
                host.memory.frames.free_2m(frame)
            yield from self._work(cost)
            return frame is not None
        present, none, *_ = pages
        guest.note_backed()
        guest.backing.collapse(address, frame)
        guest.note_backed()
        guest.invalidate(address, BLOCK)
        guest.collapses += 1
        locked = (
            costs.thp_collapse_ns
            + present * PAGE * 1_000_000_000 // costs.copy_bandwidth_bytes_per_s
            + none * PAGE * 1_000_000_000 // host.cpu.zeroing_bytes_per_s
            + guest.shoot_down()
        )
        guest.mmu_lock.reserve(host.env.now, locked)
        yield from self._work(cost + locked)
        return True

    def _block(self) -> tuple[int | None, int]:
        """A block of 2 MiB, if it leaves the watermarks whole, and ns spent on finding it."""
        host, cost = self._host, 0
        if host.free_bytes < host.low_bytes + BLOCK:
            return None, 0
        if not host.memory.frames.free_blocks:
            _, cost = host.compactor.attempt()
        try:
            return host.memory.frames.allocate_2m(), cost
        except MemoryError:
            return None, cost

    def _swap_in(self, guest: Guest, address: int) -> Process:
        """Read the pages of a range that are on the swap device."""
        host = self._host
        for page in range(address, address + BLOCK, PAGE):
            slot = guest.backing.slot_of(page) if guest.alive else None
            if slot is None or slot in guest.reads:
                continue
            frame = host.swap.take_back(slot)
            if frame is not None:
                guest.swapped_in(page, slot, frame)
            elif host.free_bytes >= host.low_bytes + PAGE:
                takes = host.swap.read(slot)
                yield from guest.read_back(page, slot, takes.sleep_ns + takes.cpu_ns)
                self.cpu_ns += takes.cpu_ns
            else:
                return
            yield from self._work(host.swap.fault_ns)
