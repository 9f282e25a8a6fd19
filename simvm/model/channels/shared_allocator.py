"""An allocator that guest and host share, as HyperAlloc does (EuroSys 2025, built on LLFree).

The state of each 2 MiB frame lies in memory that both can change, so the host needs no call of
the guest to take a frame, nor to give it back: a thread of the VMM marks a free frame as taken,
and unmaps it. Two ways of taking:

* hard, to a size: the guest cannot allocate the frame until the host gives it back;
* soft (`automatic`): every `interval` the host looks at all states and drops the frames that are
  free and backed; the guest may allocate them at any time, and has them backed again.

Frames that come back are not backed. Where the guest allocates one it asks the host to install
it: one exit, 2 MiB backed and zeroed at once. That is what a SLAT fault of 2 MiB does, and it is
charged as one, at the first touch instead of the allocation; so the host's pages are 2 MiB.

Left out: the state bits' own memory (2 bytes a frame); the guest's side of the shared allocator,
whose cost per allocation is taken as that of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simvm.hardware.geometry import BLOCK
from simvm.model.channels.none import NoChannel
from simvm.model.channels.sizing import Controller, extents_of
from simvm.model.kernel_threads import KernelThread
from simvm.model.queues import Process

if TYPE_CHECKING:
    from simvm.model.guest import Guest
    from simvm.scenario.channels import SharedAllocatorChannelSettings

BATCH = 64  # frames between two looks at the guest's state: less than a time slice of work


class SharedAllocator(NoChannel):
    """What the host takes of one guest's frames."""

    def __init__(self, settings: SharedAllocatorChannelSettings) -> None:
        super().__init__(settings)
        self._automatic = settings.automatic
        self._interval = settings.interval
        self._controller = Controller(settings)
        self._frames: list[int] = []    # taken hard

    def serve(self, guest: Guest) -> Process:
        thread = KernelThread(guest)
        while True:
            asked = guest.host.env.now
            wanted = self._controller.wanted(guest, self.withheld_bytes)
            missing = (wanted - self.withheld_bytes) // BLOCK
            if missing < 0:
                yield from self._give(guest, thread, min(-missing, BATCH))
                continue
            if missing and guest.memory.free_blocks:
                yield from self._take(guest, thread, min(missing, BATCH))
                continue
            if self._automatic:
                yield from self._sweep(guest, thread)
            pause = self._controller.pause(asked, guest.host.env.now)
            if missing or self._automatic:
                pause = self._interval if pause is None else min(self._interval, pause)
            if pause is None:
                return
            yield from thread.sleep(pause)

    def _take(self, guest: Guest, thread: KernelThread, most: int) -> Process:
        """Take free frames hard."""
        frames = [guest.memory.allocate_2m() for _ in range(min(most, guest.memory.free_blocks))]
        yield from thread.spend(len(frames) * guest.host.costs.shared_reclaim_ns)
        yield from thread.sleep(guest.mmu_lock.wait(guest.host.env.now))
        cost = guest.zap_all(extents_of(frames, BLOCK), BLOCK)
        self._frames += frames
        self.withheld_bytes += len(frames) * BLOCK
        yield from thread.spend(cost)

    def _give(self, guest: Guest, thread: KernelThread, frames: int) -> Process:
        """Let the guest allocate frames again."""
        yield from thread.spend(frames * guest.host.costs.shared_return_ns)
        for _ in range(frames):
            guest.memory.free_2m(self._frames.pop())
        self.withheld_bytes -= frames * BLOCK

    def _sweep(self, guest: Guest, thread: KernelThread) -> Process:
        """Look at every state once, and drop what is free and backed."""
        costs, at = guest.host.costs, 0
        while frames := guest.memory.free_blocks_from(at, BATCH):
            yield from thread.sleep(guest.mmu_lock.wait(guest.host.env.now))
            frames = guest.memory.free_blocks_from(at, BATCH)
            before = guest.backed_bytes
            cost = guest.zap_all(extents_of(frames, BLOCK), BLOCK)
            dropped = -(-(before - guest.backed_bytes) // BLOCK)
            end = frames[-1] + BLOCK if frames else at
            cost += dropped * costs.shared_reclaim_ns + (end - at) // BLOCK * costs.shared_scan_ns
            at = end
            yield from thread.spend(cost)
