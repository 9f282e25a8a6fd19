"""A swap device: slots, a queue of requests, and pages whose write is under way.

An NVMe-like device serves `parallelism` requests at a time, each for `latency`, and moves
`bandwidth` bytes per second in all: a request ends when both its channel and the shared
link are through with it. Both are ranges without a published figure.

A page under writeback is in the swap cache: a fault maps its frame again without a read.
Left out: readahead (swap-in is 4 KiB), and keeping a slot for a page that was read and
not written since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import simpy

from simvm import _core
from simvm.hardware.geometry import PAGE
from simvm.model.queues import Channels

if TYPE_CHECKING:
    from simvm.hardware import Costs
    from simvm.model.clock import Clock
    from simvm.scenario import Swap



class Writeback:
    """Pages on their way to the device: slot and frame of each."""

    def __init__(self, slots: Sequence[int], frames: Sequence[int]) -> None:
        self.frames: dict[int, int] = dict(zip(slots, frames, strict=True))


class SwapDevice:
    """Slots and request queue. With `device = "none"` it has no slots."""

    def __init__(self, env: Clock, settings: Swap, costs: Costs) -> None:
        self._env = env
        present = settings.device != "none"
        self.size = settings.size if present else 0
        self.slots = _core.BlockAllocator(self.size)
        self._latency = settings.latency or costs.nvme_latency_ns
        self._bandwidth = settings.bandwidth or costs.nvme_bandwidth_bytes_per_s
        self._channels = Channels(settings.parallelism or costs.nvme_parallelism)
        self._link = Channels()
        self._under_writeback: dict[int, Writeback] = {}
        self._stamps: dict[int, int] = {}   # slot -> pages evicted before it
        self._evicted_pages = 0
        self.writeback_bytes = 0
        self.reading_bytes = 0              # frames of reads under way
        self.writes_done = env.event()

    @property
    def used_bytes(self) -> int:
        """Bytes of slots in use."""
        return self.slots.size - self.slots.free_bytes

    def slot_for(self, order: int) -> int | None:
        """A slot for a folio (512 in a row for 2 MiB), or None when there is none."""
        try:
            address = self.slots.allocate_2m() if order else self.slots.allocate_4k()
        except MemoryError:
            return None
        if order:
            self.slots.break_2m(address)
        return address // PAGE

    def write(self, slots: Sequence[int], frames: Sequence[int], size: int,
              free: Callable[[list[int]], None]) -> None:
        """Write one run of pages; `free` gets the frames that nobody took back meanwhile."""
        batch = Writeback(slots, frames)
        for slot in slots:
            self._under_writeback[slot] = batch
            self._stamps[slot] = self._evicted_pages
        self._evicted_pages += len(slots)
        self.writeback_bytes += len(slots) * PAGE
        done = self._env.timeout(self._request(size))

        def finish(_: simpy.Event) -> None:
            for slot in slots:
                if self._under_writeback.get(slot) is batch:
                    del self._under_writeback[slot]
            rest = list(batch.frames.values())
            self.writeback_bytes -= len(rest) * PAGE
            free(rest)
            happened, self.writes_done = self.writes_done, self._env.event()
            happened.succeed()

        assert done.callbacks is not None
        done.callbacks.append(finish)

    def read_ns(self) -> int:
        """Queue a read of one page; how long it will take from now, in ns."""
        return self._request(PAGE)

    def take_back(self, slot: int) -> int | None:
        """The frame of a page still under writeback, now the caller's; None when written."""
        batch = self._under_writeback.pop(slot, None)
        if batch is None:
            return None
        self.writeback_bytes -= PAGE
        return batch.frames.pop(slot)

    def refault_distance(self, slot: int) -> int:
        """Pages evicted since the one in `slot` was (mm/workingset.c)."""
        return self._evicted_pages - self._stamps[slot]

    def free_slots(self, slots: Sequence[int]) -> None:
        """Give slots back. A write under way still ends before its frame is free."""
        for slot in slots:
            self._under_writeback.pop(slot, None)
            del self._stamps[slot]
            self.slots.free_4k(slot * PAGE)

    def _request(self, size: int) -> int:
        """ns until a request made now is done: its channel's latency, and the shared link."""
        now = self._env.now
        channel = self._channels.reserve(now, self._latency) + self._latency
        transfer = size * 1_000_000_000 // self._bandwidth
        return max(channel, self._link.reserve(now, transfer) + transfer)
