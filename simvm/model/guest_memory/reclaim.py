"""The guest's reclaim: its kswapd, and vCPUs that reclaim for themselves.

Below the low watermark kswapd runs until free memory is above the high one; below min who
allocates reclaims on its own time. A clean page of a file is dropped, a dirty one written to
its disk first; a program's page goes to the guest's swap device, a huge one after it is split.
Every look at a page, every unmapping and every shootdown costs CPU time.

Memory that the guest frees so stays backed by the host.

Left out: a page that the host has swapped out is written without being read back first;
writing dirty pages before reclaim finds them; readahead from the swap device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import simpy

from simvm import _core
from simvm.hardware.geometry import BLOCK, PAGE
from simvm.model.guest_memory.lists import ANON, FILE, Balance, look
from simvm.model.guest_memory.threads import Payer
from simvm.model.kernel_threads import KernelThread
from simvm.model.pressure import Stalls
from simvm.model.queues import Process
from simvm.model.reclaim import MAX_RETRIES
from simvm.model.swap import Run
from simvm.units import GIB

if TYPE_CHECKING:
    from simvm.model.guest_memory.manager import GuestMemory
    from simvm.model.guest_memory.swap import GuestSwap

SWAPPINESS = 60
ENOUGH = 48 * PAGE  # beyond min: what a fault may take, tables included, and a batch of reclaim


class GuestReclaimer:
    """Takes memory back from the page cache and from programs."""

    def __init__(self, mm: GuestMemory, kernel: _core.GuestKernel, swap: GuestSwap) -> None:
        settings = mm.guest.config.reclaim
        self._mm = mm
        self._memory = mm.guest.memory
        self._kernel = kernel
        self._swap = swap
        self._costs = mm.guest.host.costs
        self._env = mm.guest.host.env
        self._balance = Balance(kernel, settings.swappiness if settings else SWAPPINESS)
        self._awake = False
        self._wake = self._env.event()
        self.dropped = 0        # pages of files
        self.written = 0        # the part of them that had to be written

    def wake(self) -> None:
        """Free memory has fallen below the low watermark."""
        if not self._awake:
            self._awake = True
            self._mm.set_floors(kswapd_awake=True)
            self._wake.succeed()

    def serve(self) -> Process:
        """The guest's kswapd."""
        thread, memory = KernelThread(self._mm.guest), self._memory
        stalls = Stalls(self._mm.guest.own_pressure)
        high = self._mm.watermarks.high_bytes
        while True:
            if not self._awake:
                yield self._wake
                self._wake = self._env.event()
            idle = 0
            with stalls.stalled():
                while memory.free_bytes < high and idle < MAX_RETRIES:
                    if memory.free_bytes + self._writing_bytes < high:
                        progress, cost = self._shrink()
                        yield from thread.spend(cost)
                        idle = 0 if progress else idle + 1
                    else:
                        yield self._written()
            stalls.rest()
            if idle:
                # Nothing to take for now: leave it to who allocates, look again later.
                yield from thread.sleep(self._costs.timeslice_ns)
            self._awake = False
            self._mm.set_floors(kswapd_awake=False)

    def direct(self, thread: Payer) -> Process:
        """Reclaim until a fault can go on; whether it can.

        What a fault on a page of 1 GiB lacks is not free memory, if there is so much of it.
        """
        enough = self._mm.watermarks.min_bytes + ENOUGH
        if self._memory.free_bytes >= enough:
            return self._mm.guest.config.page_size != GIB
        return (yield from self.until(enough, thread))

    def until(self, enough: int, thread: Payer) -> Process:
        """Reclaim until `enough` bytes are free; whether they are."""
        memory, tries = self._memory, 0
        while memory.free_bytes < enough and tries < MAX_RETRIES:
            progress, cost = self._shrink()
            yield from thread.spend(cost)
            if memory.free_bytes < enough and self._writing_bytes:
                yield from thread.wait(self._written())
            elif not progress:
                tries += 1
        return memory.free_bytes >= enough

    def drop_files(self, most: int, thread: Payer) -> Process:
        """Drop pages of files, the old ones first, until the cache has `most` bytes."""
        tries = 0
        while self._kernel.cache_bytes > most and tries < MAX_RETRIES:
            taken = look(self._kernel, FILE)
            spare = (self._kernel.cache_bytes - most + PAGE - 1) // PAGE
            dropped = taken.evict[:spare]
            self._take_files(dropped)
            cost = max(1, taken.scanned) * self._costs.reclaim_scan_ns
            yield from thread.spend(cost + len(dropped) * self._costs.zap_4k_ns)
            tries = 0 if dropped or taken.activated else tries + 1

    @property
    def _writing_bytes(self) -> int:
        disk = self._mm.cache.disk.writing_bytes if self._mm.cache is not None else 0
        return self._swap.device.writeback_bytes + disk

    def _written(self) -> simpy.Event:
        """When the next write is done."""
        cache, device = self._mm.cache, self._swap.device
        if cache is None or not cache.disk.writing_bytes:
            return device.writes_done
        if not device.writeback_bytes:
            return cache.disk.writes_done
        return device.writes_done | cache.disk.writes_done

    def _shrink(self) -> tuple[int, int]:
        """One batch: progress (pages taken, split or activated), and its CPU time in ns."""
        which = self._balance.next(self._swap.device.has_room)
        taken = look(self._kernel, which)
        cost = max(1, taken.scanned) * self._costs.reclaim_scan_ns
        progress = taken.activated
        if which == FILE:
            self._take_files(taken.evict)
            progress += len(taken.evict)
            cost += len(taken.evict) * self._costs.zap_4k_ns
        elif taken.evict:
            pages, spent = self._take_programs(taken.evict)
            progress += pages
            cost += spent
        return progress, cost

    def _take_files(self, folios: list[int]) -> None:
        clean: list[int] = []
        dirty: list[int] = []
        for folio in folios:
            address, is_dirty = self._kernel.uncache(folio)
            (dirty if is_dirty else clean).append(address)
        self.dropped += len(folios)
        self.written += len(dirty)
        self._free(clean)
        if dirty:
            assert self._mm.cache is not None
            self._mm.cache.disk.write(dirty, self._free)

    def _take_programs(self, folios: list[int]) -> tuple[int, int]:
        kernel, device, mm = self._kernel, self._swap.device, self._mm
        slots: list[int] = []
        frames: list[int] = []
        cost = splits = 0
        for folio in folios:
            asid, va = kernel.owner_of(folio)
            frame = kernel.address_of(folio)
            if kernel.order_of(folio):
                kernel.split(folio, ANON)
                mm.unmapped(asid, va, BLOCK, [frame], BLOCK)
                cost += self._costs.thp_split_ns
                splits += 1
                continue
            slot = device.slot_for(0)
            if slot is None:
                break
            kernel.page_out(folio, slot)
            mm.unmapped(asid, va, PAGE, [frame])
            slots.append(slot)
            frames.append(frame)
        if slots:
            self._swap.outs += len(slots)
            run = Run(slots, frames, mm.guest.content, frames[0])
            cost += device.write(run, self._free)
            cost += len(slots) * self._costs.zap_4k_ns
        return len(slots) + splits, cost + mm.shoot_down()

    def _free(self, frames: list[int]) -> None:
        self._memory.free_many(np.array(frames, dtype=np.uint64))
        self._mm.guest.channel.reclaimed(self._mm.guest)
