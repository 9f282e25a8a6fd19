"""virtio-mem (Linux, drivers/virtio/virtio_mem.c): memory unplugged and plugged in blocks.

The host says how large the guest should be; the driver unplugs device blocks from the highest
address down, and plugs the lowest ones first. It works through the guest's memory blocks of
128 MiB (of a device block, where that is larger). A device block is unplugged when all of it is
free: first nobody gets its free pages any more, then pages of processes in it move elsewhere.
With one page that cannot move (the kernel's, a page table, a 1 GiB page) it stays, and the driver
goes on to the next. The host drops a block in one call. If the size is not reached the driver
tries again after 50 s, then 100 s, up to 300 s, or when the host asks for another size.

`unmovable` pages lie in that share of the device blocks from the end of the boot on.

Left out: memory above `memory` (hotplug), so the device's memory is the guest's own; zones; what
moves is backed at its new place when it is touched next, not as it is copied.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from simvm.hardware.geometry import BLOCK, PAGE
from simvm.model.channels.none import NoChannel
from simvm.model.channels.sizing import Controller, extents_of
from simvm.model.kernel_threads import KernelThread
from simvm.model.queues import Process
from simvm.workload.patterns import random_bits

if TYPE_CHECKING:
    from simvm.model.guest import Guest
    from simvm.scenario.channels import VirtioMemChannelSettings

GUEST_BLOCK = 128 << 20             # memory_block_size_bytes of x86-64
RETRY_NS = 50_000_000_000           # VIRTIO_MEM_RETRY_TIMER_MIN_MS
LONGEST_RETRY_NS = 300_000_000_000  # VIRTIO_MEM_RETRY_TIMER_MAX_MS


class VirtioMem(NoChannel):
    """The virtio-mem device of one guest, whose blocks are all of its memory."""

    def __init__(self, settings: VirtioMemChannelSettings) -> None:
        super().__init__(settings)
        self._size = settings.block_size
        self._unmovable = settings.unmovable
        self._controller = Controller(settings)
        self._unplugged: set[int] = set()   # addresses of device blocks

    def serve(self, guest: Guest) -> Process:
        self._pin(guest)
        thread = KernelThread(guest)
        retry, asked = RETRY_NS, 0
        while True:
            now = guest.host.env.now
            wanted = self._controller.wanted(guest, self.withheld_bytes)
            if wanted != asked:
                retry, asked = RETRY_NS, wanted
            missing = (wanted - self.withheld_bytes) // self._size
            if missing < 0:
                yield from self._plug(guest, thread, -missing)
                continue
            pause = self._controller.pause(now)
            if missing:
                yield from self._unplug(guest, thread, missing)
                if wanted - self.withheld_bytes >= self._size:
                    pause, retry = min(pause or retry, retry), min(2 * retry, LONGEST_RETRY_NS)
                else:
                    retry = RETRY_NS
                    pause = self._controller.pause(guest.host.env.now)
            if pause is None:
                return
            yield from thread.sleep(max(0, now + pause - guest.host.env.now))

    def _pin(self, guest: Guest) -> None:
        """Put a page of the kernel into some device blocks."""
        memory, seed = guest.memory, guest.scenario.scenario.seed
        draw = np.random.Generator(random_bits(seed, f"{guest.name}/virtio_mem/unmovable"))
        for block, chance in enumerate(draw.random(guest.config.memory // self._size)):
            if chance < self._unmovable:
                taken, _ = memory.vacate(block * self._size, BLOCK, [])
                for address in taken:
                    memory.break_2m(address)
                    memory.free_many(address + np.arange(1, 512, dtype=np.uint64) * PAGE)

    def _unplug(self, guest: Guest, thread: KernelThread, blocks: int) -> Process:
        """Try to unplug device blocks, the highest first, a block of Linux at a time."""
        group = max(GUEST_BLOCK, self._size)
        for start in reversed(range(0, guest.config.memory, group)):
            end = min(start + group, guest.config.memory)
            plugged = [
                address for address in reversed(range(start, end, self._size))
                if address not in self._unplugged
            ]  # fmt: skip
            while plugged and blocks > 0:
                tried, plugged = plugged[:blocks], plugged[blocks:]
                taken = yield from self._offline(guest, thread, tried)
                blocks -= len(taken)

    def _offline(self, guest: Guest, thread: KernelThread, tried: list[int]) -> Process:
        """One attempt at some device blocks: those that are unplugged now."""
        costs, size = guest.host.costs, self._size
        free: set[int] = set()
        cost = len(tried) * (size // BLOCK) * costs.virtio_mem_unplug_ns
        for start, length in extents_of(tried, size):
            guest.hint_calls += 1
            done, spent = guest.vacate(start, length)
            free.update(done)
            cost += spent
        taken = [
            block for block in tried if all(at in free for at in range(block, block + size, BLOCK))
        ]  # fmt: skip
        for block in tried:
            if block not in taken:
                for address in sorted(free & set(range(block, block + size, BLOCK))):
                    guest.memory.free_2m(address)
        yield from thread.spend(cost)
        yield from thread.sleep(guest.mmu_lock.wait(guest.host.env.now))
        cost = guest.zap_all([(block, size) for block in taken], size)
        self._unplugged.update(taken)
        self.withheld_bytes += len(taken) * size
        yield from thread.spend(cost)
        return taken

    def _plug(self, guest: Guest, thread: KernelThread, blocks: int) -> Process:
        """Plug device blocks, the lowest first, a block of Linux at a time."""
        chosen = sorted(self._unplugged)[:blocks]
        each = self._size // BLOCK * guest.host.costs.virtio_mem_plug_ns
        unit = max(GUEST_BLOCK, self._size)
        for _, blocks_of in itertools.groupby(chosen, lambda block: block // unit):
            group = list(blocks_of)
            guest.hint_calls += 1
            yield from thread.spend(len(group) * each)
            for block in group:
                self._unplugged.remove(block)
                for address in range(block, block + self._size, BLOCK):
                    guest.memory.free_2m(address)
            self.withheld_bytes -= len(group) * self._size
