"""Compressed pages in RAM, and what compressing one takes: shared by zram and zswap."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simvm.hardware.geometry import PAGE
from simvm.model.swap.latency import Latency
from simvm.scenario.swap import ratio_of

if TYPE_CHECKING:
    from simvm import _core
    from simvm.hardware import Costs
    from simvm.model.content import PageContent

HUGE_CLASS = 3264
"""Bytes from which zsmalloc gives an object a page of its own (mm/zsmalloc.c, 4 KiB pages)."""


class Compressor:
    """One algorithm: what it makes of a page, and CPU time, either way alike."""

    def __init__(self, algorithm: str, costs: Costs, seed: int, label: str) -> None:
        self._algorithm = algorithm
        mean = getattr(costs, f"zram_{algorithm}_ns")
        p99 = getattr(costs, f"zram_{algorithm}_p99_ns")
        self._latency = Latency(mean, p99, seed, f"{label}/{algorithm}")

    def packed_bytes(self, content: PageContent, address: int) -> int:
        """Bytes that it makes of a page."""
        return content.packed_bytes(address, ratio_of(self._algorithm, content.ratio))

    def ns(self) -> int:
        """CPU time for one page."""
        return self._latency.draw()


class Pool:
    """Compressed pages by slot, oldest first, in frames of RAM.

    Objects fill its pages without gaps: what zsmalloc loses to size classes and holes is
    left out. A page of zeroes takes nothing.
    """

    def __init__(self, frames: _core.BlockAllocator) -> None:
        self._frames = frames
        self._sizes: dict[int, int] = {}
        self._zeroes: set[int] = set()
        self.pages: list[int] = []
        self.stored_bytes = 0

    def __contains__(self, slot: int) -> bool:
        return slot in self._sizes or slot in self._zeroes

    @property
    def original_bytes(self) -> int:
        """What its pages are when they are not compressed."""
        return (len(self._sizes) + len(self._zeroes)) * PAGE

    @property
    def held_bytes(self) -> int:
        """RAM that it takes."""
        return len(self.pages) * PAGE

    @property
    def oldest(self) -> int | None:
        """The slot of the page that has been here longest, of those that take memory."""
        return next(iter(self._sizes), None)

    def size_of(self, slot: int) -> int:
        """Compressed bytes of a page."""
        return 0 if slot in self._zeroes else self._sizes[slot]

    def put(self, slot: int, size: int) -> None:
        """Store a page. MemoryError, and nothing stored, when RAM is used up."""
        if not size:
            self._zeroes.add(slot)
            return
        size = PAGE if size >= HUGE_CLASS else size
        while self.held_bytes < self.stored_bytes + size:
            self.pages.append(self._frames.allocate_4k(False))
        self._sizes[slot] = size
        self.stored_bytes += size

    def drop(self, slot: int) -> None:
        """Forget a page."""
        if slot in self._zeroes:
            self._zeroes.remove(slot)
            return
        self.stored_bytes -= self._sizes.pop(slot)
        while self.held_bytes >= self.stored_bytes + PAGE:
            self._frames.free_4k(self.pages.pop())
