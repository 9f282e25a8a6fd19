"""virtio-mem (Linux, drivers/virtio/virtio_mem.c): memory unplugged and plugged in blocks.

The host says how large the guest should be; the driver unplugs device blocks from the highest
address down, and plugs the lowest ones first. It works through the guest's memory blocks of
128 MiB (of a device block, where that is larger). A device block is unplugged when all of it is
free: first nobody gets its free pages any more, then pages of processes and files in it move
elsewhere, and the guest reclaims for those if little is free. With one page that cannot move (the
kernel's, a page table, a 1 GiB page) it stays, and the driver goes on to the next. The host drops a
block in one call. If the size is not reached the driver tries again after 50 s, then 100 s, up to
300 s, or when the host asks for another size.

`unmovable` pages lie in that share of the device blocks, from the end of the boot on or from when
they are plugged. Memory above `memory` is unplugged at boot. With the first device block of one of
its memory blocks Linux needs struct pages for all of it, out of what it has; they go with the last.

Left out: zones; clean pages of files move like others (alloc_contig_range drops them).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from simvm.hardware.geometry import BLOCK, PAGE
from simvm.model.channels.none import NoChannel
from simvm.model.channels.sizing import Controller, extents_of
from simvm.model.guest_memory.threads import GuestThread
from simvm.model.host import STRUCT_PAGE_BYTES
from simvm.model.queues import Process
from simvm.scenario.check_channels import LINUX_BLOCK
from simvm.workload.patterns import random_bits

if TYPE_CHECKING:
    from simvm.model.guest import Guest
    from simvm.scenario.channels import VirtioMemChannelSettings

RETRY_NS = 50_000_000_000           # VIRTIO_MEM_RETRY_TIMER_MIN_MS
LONGEST_RETRY_NS = 300_000_000_000  # VIRTIO_MEM_RETRY_TIMER_MAX_MS


class VirtioMem(NoChannel):
    """The virtio-mem device of one guest, whose blocks are all of its memory."""

    _doomed: frozenset[int]     # device blocks in which a page of the kernel lies, once plugged

    def __init__(self, settings: VirtioMemChannelSettings) -> None:
        super().__init__(settings)
        self._size = settings.block_size
        self._unmovable = settings.unmovable
        self._controller = Controller(settings)
        self._unplugged: set[int] = set()   # addresses of device blocks
        self._memmaps: dict[int, list[tuple[int, int]]] = {}    # by block of Linux

    def serve(self, guest: Guest) -> Process:
        self._start(guest)
        thread = GuestThread(guest)
        retry, before = RETRY_NS, 0
        while True:
            asked = guest.host.env.now
            wanted = self._controller.wanted(guest, self.withheld_bytes)
            if wanted != before:
                retry, before = RETRY_NS, wanted
            missing = (wanted - self.withheld_bytes) // self._size
            if missing > 0:
                yield from self._unplug(guest, thread, missing)
            elif missing < 0:
                yield from self._plug(guest, thread, -missing)
            pause = self._controller.pause(asked, guest.host.env.now)
            if (wanted - self.withheld_bytes) // self._size:
                pause = retry if pause is None else min(pause, retry)
                retry = min(2 * retry, LONGEST_RETRY_NS)
            if pause is None:
                return
            yield from thread.sleep(pause)

    def _start(self, guest: Guest) -> None:
        """What is unplugged at boot, and where pages of the kernel lie."""
        config = guest.config
        self._unplugged = set(range(config.memory, config.memory_max, self._size))
        self.withheld_bytes = config.memory_max - config.memory
        bits = random_bits(guest.scenario.scenario.seed, f"{guest.name}/virtio_mem/unmovable")
        chances = np.random.Generator(bits).random(config.memory_max // self._size)
        doomed = np.flatnonzero(chances < self._unmovable) * self._size
        self._doomed = frozenset(int(block) for block in doomed)
        for block in sorted(self._doomed - self._unplugged):
            self._pin(guest, block)

    def _pin(self, guest: Guest, block: int) -> None:
        """Put a page of the kernel into a device block, if its first 2 MiB are free."""
        taken, _ = guest.memory.vacate(block, BLOCK, [])
        for address in taken:
            guest.memory.break_2m(address)
            guest.memory.free_many(address + np.arange(1, 512, dtype=np.uint64) * PAGE)

    def _unplug(self, guest: Guest, thread: GuestThread, blocks: int) -> Process:
        """Try to unplug device blocks, the highest first, a block of Linux at a time."""
        group = max(LINUX_BLOCK, self._size)
        for start in reversed(range(0, guest.config.memory_max, group)):
            end = min(start + group, guest.config.memory_max)
            plugged = [
                address for address in reversed(range(start, end, self._size))
                if address not in self._unplugged
            ]  # fmt: skip
            while plugged and blocks > 0:
                tried, plugged = plugged[:blocks], plugged[blocks:]
                taken = yield from self._offline(guest, thread, tried)
                blocks -= len(taken)
            if start in self._memmaps and self._unplugged.issuperset(range(start, end, self._size)):
                for address, pages in self._memmaps.pop(start):
                    free = guest.memory.free_2m if pages == 512 else guest.memory.free_4k
                    free(address)

    def _offline(self, guest: Guest, thread: GuestThread, tried: list[int]) -> Process:
        """One attempt at some device blocks: those that are unplugged now."""
        costs, size = guest.host.costs, self._size
        free: set[int] = set()
        copied: list[int] = []
        copied_large: list[int] = []
        cost = len(tried) * (size // BLOCK) * costs.virtio_mem_unplug_ns
        for start, length in extents_of(tried, size):
            guest.hint_calls += 1
            yield from guest.mm.reclaim_for(length, thread)
            done, (small, large), spent = guest.vacate(start, length)
            free.update(done)
            cost += spent
            copied += small
            copied_large += large
        taken = [
            block for block in tried if all(at in free for at in range(block, block + size, BLOCK))
        ]  # fmt: skip
        for block in tried:
            if block not in taken:
                for address in sorted(free & set(range(block, block + size, BLOCK))):
                    guest.memory.free_2m(address)
        yield from thread.spend(cost)
        yield from thread.write(copied)
        yield from thread.write(copied_large, BLOCK)
        yield from thread.sleep(guest.mmu_lock.wait(guest.host.env.now))
        cost = guest.zap_all([(block, size) for block in taken], size)
        self._unplugged.update(taken)
        self.withheld_bytes += len(taken) * size
        yield from thread.spend(cost)
        return taken

    def _plug(self, guest: Guest, thread: GuestThread, blocks: int) -> Process:
        """Plug device blocks, the lowest first, a block of Linux at a time.

        One whose struct pages have no room is left, as are those above it.
        """
        each = self._size // BLOCK * guest.host.costs.virtio_mem_plug_ns
        unit = max(LINUX_BLOCK, self._size)
        chosen = sorted(self._unplugged)[:blocks]
        for start, blocks_of in itertools.groupby(chosen, lambda block: block // unit * unit):
            group = list(blocks_of)
            if start >= guest.config.memory and start not in self._memmaps:
                needed = unit // PAGE * STRUCT_PAGE_BYTES
                if guest.memory.free_bytes < needed:
                    return
                self._memmaps[start] = _struct_pages(guest, needed)
                for address, pages in self._memmaps[start]:
                    yield from thread.write([address], pages * PAGE)
            guest.hint_calls += 1
            yield from thread.spend(len(group) * each)
            for block in group:
                self._unplugged.remove(block)
                for address in range(block, block + self._size, BLOCK):
                    guest.memory.free_2m(address)
                if block in self._doomed:
                    self._pin(guest, block)
            self.withheld_bytes -= len(group) * self._size


def _struct_pages(guest: Guest, needed: int) -> list[tuple[int, int]]:
    """Memory for the struct pages of a block of Linux, in large pages if it can: (address, pages).

    As vmemmap_populate has it (mm/sparse-vmemmap.c).
    """
    if guest.memory.free_blocks * BLOCK >= needed:
        return [(guest.memory.allocate_2m(), 512) for _ in range(needed // BLOCK)]
    return [(guest.memory.allocate_4k(False), 1) for _ in range(needed // PAGE)]
