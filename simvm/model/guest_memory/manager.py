"""The guest kernel's memory: its parts, and what others may ask of it.

A channel finds this as `guest.mm`:

* `take(pages, thread)` gives a driver free pages, as a balloon wants them, and reclaims for
  them; fewer than asked when nothing is left above the min watermark. They are given back to
  `guest.memory`, by `free_4k`.
* `room_for(size, thread)` says how much a driver may take that allocates for itself.
* `reclaim_for(size, thread)` makes the guest free memory until `size` bytes are free above the
  min watermark, or nothing is left to reclaim.
* A vCPU that finds no free page reclaims on its own time; then the channel's `out_of_memory`
  is asked; then the guest dies.

`thread` is whoever pays for the CPU time and waits for the guest's devices: a `KernelThread`,
or `OnVcpu`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import simpy

from simvm import _core
from simvm.hardware.geometry import BLOCK, PAGE
from simvm.model.guest_memory.cache import PageCache
from simvm.model.guest_memory.fragmentation import litter
from simvm.model.guest_memory.khugepaged import Khugepaged
from simvm.model.guest_memory.reclaim import GuestReclaimer
from simvm.model.guest_memory.short_processes import ShortProcesses
from simvm.model.guest_memory.swap import GuestSwap
from simvm.model.guest_memory.threads import GuestThread, Payer
from simvm.model.guest_memory.zones import list_pages
from simvm.model.queues import Process
from simvm.model.watermarks import SCALE_FACTOR, Watermarks

if TYPE_CHECKING:
    from simvm.model.guest import Guest
    from simvm.model.vcpu import VirtualCpu

HUGE_ORDERS = {1: BLOCK, 2: 1 << 30}


class OnVcpu:
    """A vCPU that reclaims on its own time."""

    def __init__(self, vcpu: VirtualCpu) -> None:
        self._vcpu = vcpu

    def spend(self, ns: int) -> Process:
        yield from self._vcpu.enter_core()
        yield from self._vcpu.spend(("guest_reclaim_ns", ns))

    def wait(self, event: simpy.Event) -> Process:
        yield from self._vcpu.sleep_on(event, "guest_reclaim_ns")


class GuestMemory:
    """The memory of one virtual machine, as its kernel manages it.

    `kernel` is None when its class has no key of `simvm.scenario.guest_memory`: then it hands
    out memory until there is none, and there is nothing to reclaim.
    """

    def __init__(self, guest: Guest) -> None:
        config = guest.config
        settings = config.reclaim
        self.guest = guest
        min_free, self.scale_factor = None, SCALE_FACTOR
        if settings is not None:
            min_free, self.scale_factor = settings.min_free, settings.watermark_scale_factor
        self.watermarks = Watermarks.of(config.memory, min_free, self.scale_factor)
        self.kernel: _core.GuestKernel | None = None
        self.swap: GuestSwap | None = None
        self.cache: PageCache | None = None
        self.khugepaged: Khugepaged | None = None
        self.reclaimer: GuestReclaimer | None = None
        self.short_processes: ShortProcesses | None = None
        self.threads: list[GuestThread] = []
        self.written_at_boot: list[int] = []    # pages that an earlier life left behind
        self.pinned_bytes = 0                   # those of them that stay

    # --- life ---------------------------------------------------------------------------

    def reserve(self, size: int) -> int:
        """Take `size` bytes (rounded up to blocks) for the kernel, for good; their address.

        MemoryError when there are not so many.
        """
        memory, config = self.guest.memory, self.guest.config
        start = (config.memory // BLOCK + -size // BLOCK) * BLOCK
        if config.kernel_place == "low" or start < 0:
            memory.reserve_low(size)
            return 0
        memory.vacate(start, -(-size // BLOCK) * BLOCK, [])
        return start

    def boot(self) -> None:
        """Set up what the scenario asks for; boot footprint and struct pages are there."""
        guest, config = self.guest, self.guest.config
        if config.zeroing == "none":
            guest.memory.track_reuse()
        if config.per_cpu_lists:
            list_pages(guest)
        if config.short_processes is not None:
            self.short_processes = ShortProcesses(self, config.short_processes)
        if not config.keeps_account:
            return
        files = config.page_cache.files if config.page_cache is not None else 0
        left_over = guest.memory.size // BLOCK * PAGE if config.fragmentation is not None else 0
        kernel = self.kernel = _core.GuestKernel(guest.memory, True, files + left_over)
        for order, size in HUGE_ORDERS.items():
            if config.pool_bytes(size):
                # What does not fit is missing, as hugepages= on the command line has it.
                with suppress(MemoryError):
                    kernel.fill_pool(order, config.pool_bytes(size))
        if config.fragmentation is not None:
            litter(self, kernel, config.fragmentation, files // PAGE)
        self.swap = GuestSwap(self, kernel)
        self.reclaimer = GuestReclaimer(self, kernel, self.swap)
        if config.page_cache is not None:
            self.cache = PageCache(self, kernel, config.page_cache)
        if config.khugepaged is not None:
            self.khugepaged = Khugepaged(self, kernel, config.khugepaged)
        self.set_floors(kswapd_awake=False)
        for vcpu in guest.vcpus:
            vcpu.core.set_kernel(kernel)

    def activities(self) -> list[Process]:
        """What goes on beside the vCPUs from the end of the boot."""
        parts = (self.reclaimer, self.cache, self.khugepaged, self.short_processes)
        return [part.serve() for part in parts if part is not None]

    def set_floors(self, kswapd_awake: bool) -> None:
        """What a fault must leave free, and whether it has kswapd to wake."""
        assert self.kernel is not None
        marks = self.watermarks
        wake = 0 if kswapd_awake else marks.low_bytes
        self.kernel.set_floors(marks.min_bytes, marks.low_bytes, wake)

    def new_process(self, table: _core.PageTable) -> None:
        """The next process has this table."""
        if self.kernel is not None:
            self.kernel.add_process(table)

    def freed(self) -> None:
        """A region or its tail was freed: so are its swap slots."""
        if self.kernel is not None and self.swap is not None and self.kernel.freed_slots:
            self.swap.device.free_slots(self.kernel.freed_slots)
            self.kernel.freed_slots.clear()

    # --- what others ask ----------------------------------------------------------------

    @property
    def spare_bytes(self) -> int:
        """Free memory above the min watermark, which is for the kernel alone."""
        return max(0, self.guest.memory.free_bytes - self.watermarks.min_bytes)

    def out_of_memory(self, vcpu: VirtualCpu) -> Process:
        """No page is free for the vCPU: whether the guest can go on after all."""
        if self.guest.memory.drain():
            return True
        reclaimed = False
        if self.reclaimer is not None:
            with vcpu.own_stalls.stalled():
                reclaimed = yield from self.reclaimer.direct(OnVcpu(vcpu))
        return reclaimed or (yield from self.guest.channel.out_of_memory(vcpu, self.guest))

    def reclaim_for(self, size: int, thread: Payer) -> Process:
        """Free memory until `size` bytes are spare; whether they are."""
        if self.reclaimer is not None:
            yield from self.reclaimer.until(self.watermarks.min_bytes + size, thread)
        return self.spare_bytes >= size

    def room_for(self, size: int, thread: Payer) -> Process:
        """How many bytes a driver may take that wants `size`: the guest reclaims for it."""
        if self.kernel is None:
            return self.guest.memory.free_bytes
        yield from self.reclaim_for(size, thread)
        return self.spare_bytes

    def take(self, pages: int, thread: Payer) -> Process:
        """Up to `pages` movable pages for a driver: their addresses."""
        yield from self.reclaim_for(pages * PAGE, thread)
        count = min(pages, self.spare_bytes // PAGE)
        return [self.guest.memory.allocate_4k() for _ in range(count)]

    def wake_if_low(self) -> None:
        """Wake kswapd if free memory has fallen below the low watermark."""
        low = self.guest.memory.free_bytes < self.watermarks.low_bytes
        if self.reclaimer is not None and low:
            self.reclaimer.wake()

    # --- what the guest's translations are told -----------------------------------------

    def unmapped(
        self, asid: int, address: int, size: int, pages: list[int], page: int = PAGE
    ) -> None:
        """The kernel changed what [address, address + size) of a process maps.

        `pages` are those that were mapped there, of `page` bytes: shadow tables forget them.
        """
        guest = self.guest
        guest.flush_process(asid, address, size)
        if guest.shadow is not None:
            guest.shadow.note_writes(len(pages))
            for start in pages:
                guest.shadow.drop(start, page)

    def core_run(self, vcpu: VirtualCpu) -> Callable[..., int]:
        """What runs a slice of a vCPU: with lists of pages, its own serve its faults."""
        run, memory = vcpu.core.run, self.guest.memory
        if not self.guest.config.per_cpu_lists:
            return run

        def listed(*slice_: Any) -> int:
            memory.run_on(vcpu.index)
            return run(*slice_)

        return listed

    def shoot_down(self) -> int:
        """Tell the other vCPUs of changed mappings; ns of the one who asks.

        The guest's own interrupts: no lock of the host is held.
        """
        costs = self.guest.host.costs
        running = [vcpu for vcpu in self.guest.vcpus if vcpu.running]
        for vcpu in running:
            vcpu.kick()
        return costs.shootdown_base_ns + costs.shootdown_per_receiver_ns * len(running)

    # --- gauges and counters ------------------------------------------------------------

    @property
    def held_bytes(self) -> int:
        """What the kernel itself holds and has written since the boot, but for tables."""
        short = self.short_processes.held_bytes if self.short_processes is not None else 0
        return self.cache_bytes + self.pinned_bytes + short

    @property
    def cache_bytes(self) -> int:
        """The page cache, and what an earlier life left in it."""
        return self.kernel.cache_bytes if self.kernel is not None else 0

    def values(self) -> dict[str, int]:
        """The gauges and counters of the guest's own memory."""
        guest, cache, reclaimer, swap = self.guest, self.cache, self.reclaimer, self.swap
        alive = guest.alive and guest.is_vm
        tables = [space.table for space in guest.processes.values() if space.table is not None]
        huge = sum(t.leaves[1] * BLOCK + t.leaves[2] * HUGE_ORDERS[2] for t in tables)
        swapped = self.kernel.swapped_bytes if self.kernel is not None else 0
        cores = [vcpu.core for vcpu in guest.vcpus]
        return {
            "guest_free_bytes": guest.memory.free_bytes if alive else 0,
            "guest_huge_bytes": huge if alive else 0,
            "page_cache_bytes": self.cache_bytes if alive else 0,
            "guest_swapped_bytes": swapped if alive else 0,
            "guest_zeroed_bytes": sum(core.zeroed_bytes for core in cores),
            "guest_reuse_zeroed_bytes": sum(core.reuse_bytes for core in cores),
            "cache_reads": cache.reads if cache else 0,
            "cache_misses": cache.misses if cache else 0,
            "cache_drops": reclaimer.dropped if reclaimer else 0,
            "cache_writebacks": reclaimer.written if reclaimer else 0,
            "guest_swap_ins": swap.ins if swap else 0,
            "guest_swap_outs": swap.outs if swap else 0,
            "guest_collapses": self.khugepaged.collapses if self.khugepaged else 0,
        }
