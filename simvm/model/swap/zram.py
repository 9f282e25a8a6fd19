"""zram: swap that is a compressed pool in RAM (drivers/block/zram).

Whoever swaps compresses, on its own time, and the frame is free at once; so is what a
fault takes to decompress. A page of zeroes takes no memory and no time; one that does not
compress is stored as it is. The pool grows into RAM as it is needed, up to
`memory_limit`; a page that finds no memory stays where it was.

The cost of a page is one figure for both ways, from reads: compressing takes longer, so
the cost of swapping out errs low.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from simvm.hardware.geometry import PAGE
from simvm.model.swap.base import Free, Run, SwapDevice, Wait
from simvm.model.swap.pool import Compressor, Pool

if TYPE_CHECKING:
    from simvm import _core
    from simvm.hardware import Costs
    from simvm.model.clock import Clock
    from simvm.scenario import ZramSwap


class Zram(SwapDevice):
    """A compressed device in RAM."""

    pool: Pool

    def __init__(
        self, env: Clock, settings: ZramSwap, costs: Costs, frames: _core.BlockAllocator,
        seed: int, label: str,
    ) -> None:  # fmt: skip
        super().__init__(env, settings.size, costs.swap_fault_ns)
        self._frames = frames
        self._limit = settings.memory_limit
        self.pool = Pool(frames)
        self._compressor = Compressor(settings.algorithm, costs, seed, label)

    @property
    def has_room(self) -> bool:
        return super().has_room and self._fits(1)

    def slot_for(self, order: int) -> int | None:
        return super().slot_for(order) if self._fits(1 << 9 * order) else None

    def _fits(self, pages: int) -> bool:
        """Whether `pages` that do not compress would fit."""
        limit = self._limit
        within = limit is None or self.pool.held_bytes + pages * PAGE <= limit
        return within and self._frames.free_bytes >= pages * PAGE

    def write(self, run: Run, free: Free) -> int:
        spent = super().write(run, free)
        for page, slot in enumerate(run.slots):
            size = self._compressor.packed_bytes(run.content, run.address + page * PAGE)
            self.pool.put(slot, size)
            spent += self._compressor.ns() if size else 0
        free(list(run.frames))
        return spent

    def read(self, slot: int) -> Wait:
        return Wait(self._compressor.ns() if self.pool.size_of(slot) else 0, 0)

    def free_slots(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self.pool.drop(slot)
        super().free_slots(slots)
