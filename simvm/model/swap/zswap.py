"""zswap: a compressed pool in RAM before a device (mm/zswap.c).

Every page has a slot on the device. A page that compresses goes to the pool while that
accepts; else it is written to the device. The pool stops accepting at `max_pool_percent`
of RAM and accepts again below `accept_threshold_percent` of that; in between a worker
writes the oldest pages back to the device, decompressing each into a frame of its own,
until the pool accepts.

Left out: the shrinker that writes back before the pool is full, when memory is short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from simvm.hardware.geometry import PAGE
from simvm.model.queues import Process
from simvm.model.swap.base import Free, Run, Wait
from simvm.model.swap.nvme import Nvme
from simvm.model.swap.pool import Compressor, Pool

if TYPE_CHECKING:
    from simvm import _core
    from simvm.hardware import Costs
    from simvm.model.clock import Clock
    from simvm.scenario import ZswapSwap

Worker = Callable[[int], Process]
"""Spends CPU time, in ns, on a thread of its own."""


class Zswap(Nvme):
    """A pool, and the device that its oldest pages go to."""

    pool: Pool

    def __init__(
        self, env: Clock, settings: ZswapSwap, costs: Costs, frames: _core.BlockAllocator,
        seed: int, label: str, worker: Worker,
    ) -> None:  # fmt: skip
        super().__init__(env, settings, costs, seed, label)
        self._frames = frames
        self.pool = Pool(frames)
        self._compressor = Compressor(settings.algorithm, costs, seed, label)
        self._most = frames.size * settings.max_pool_percent // 100
        self._accept = self._most * settings.accept_threshold_percent // 100
        self._full = False
        self._worker = worker
        self._shrinking = False
        self._free: Free | None = None

    def write(self, run: Run, free: Free) -> int:
        spent, rest = 0, []
        for page, slot in enumerate(run.slots):
            size = self._compressor.packed_bytes(run.content, run.address + page * PAGE)
            if not self._accepts():
                rest.append(page)
                continue
            spent += self._compressor.ns() if size else 0  # also of what turns out too large
            if size == PAGE or not self._keep(slot, size):
                rest.append(page)
        self._stamp(run.slots)
        kept = set(range(len(run.slots))).difference(rest)
        free([run.frames[page] for page in sorted(kept)])
        if rest:
            slots, frames = [run.slots[page] for page in rest], [run.frames[page] for page in rest]
            self._submit(slots, frames, free)
        if self._full and not self._shrinking:
            self._shrinking, self._free = True, free
            self._env.process(self._shrink())
        return spent

    def _accepts(self) -> bool:
        """The two thresholds: zswap_check_limits, and zswap_pool_reached_full until it accepts."""
        held = self.pool.held_bytes
        if held >= self._most:
            self._full = True
        elif self._full and held <= self._accept:
            self._full = False
        return not self._full

    def _keep(self, slot: int, size: int) -> bool:
        try:
            self.pool.put(slot, size)
        except MemoryError:
            return False
        return True

    def _shrink(self) -> Process:
        """Write the oldest pages back until the pool accepts again."""
        assert self._free is not None
        while not self._accepts():
            slot = self.pool.oldest
            assert slot is not None
            if self._frames.free_bytes < PAGE:
                if not self.writeback_bytes:
                    break
                yield self.writes_done
                continue
            frame = self._frames.allocate_4k()
            self.reading_bytes += PAGE
            yield from self._worker(self._compressor.ns())
            self.reading_bytes -= PAGE
            if slot in self.pool:
                self.pool.drop(slot)
                self.written_back += 1
                self._submit([slot], [frame], self._free)
            else:  # given back meanwhile
                self._free([frame])
        self._shrinking = False

    def read(self, slot: int) -> Wait:
        if slot not in self.pool:
            return super().read(slot)
        return Wait(self._compressor.ns() if self.pool.size_of(slot) else 0, 0)

    def free_slots(self, slots: Sequence[int]) -> None:
        for slot in slots:
            if slot in self.pool:
                self.pool.drop(slot)
        super().free_slots(slots)
