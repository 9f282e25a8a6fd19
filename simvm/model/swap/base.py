"""What every swap device has: slots, stamps for the refault distance, pages under writeback.

Whoever swaps calls `slot_for`, `write`, `read` and `free_slots`, and pays for what these
return. A device knows a clock, its settings and what it is given; it does not reach into a
host, so a guest can have devices of its own.

Left out: readahead (swap-in is 4 KiB), and keeping a slot for a page that was read and
not written since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from simvm import _core
from simvm.hardware.geometry import PAGE

if TYPE_CHECKING:
    from simvm.model.clock import Clock
    from simvm.model.content import PageContent
    from simvm.model.swap.pool import Pool

Free = Callable[[list[int]], None]
"""Takes frames that a write has left behind."""


@dataclass(frozen=True, slots=True)
class Run:
    """Pages that are written as one: slot and frame of each, and what they hold.

    They lie in a row from `address` on, in the space that `content` knows.
    """

    slots: Sequence[int]
    frames: Sequence[int]
    content: PageContent
    address: int


class Wait(NamedTuple):
    """What a read takes: CPU time of the one who reads, and time that it may sleep, in ns."""

    cpu_ns: int
    sleep_ns: int


class SwapDevice:
    """Slots of 4 KiB. A device says what `write` and `read` do with them."""

    pool: Pool | None = None
    """Compressed pages in RAM, if the device has such."""

    def __init__(self, env: Clock, size: int, fault_ns: int) -> None:
        self._env = env
        self.size = size
        self.fault_ns = fault_ns            # CPU time of a fault that finds a page here
        self.slots = _core.BlockAllocator(size)
        self._stamps: dict[int, int] = {}   # slot -> pages evicted before it
        self._evicted_pages = 0
        self.writeback_bytes = 0            # frames of writes under way
        self.reading_bytes = 0              # frames of reads under way; kept by who reads
        self.written_back = 0               # pages, from a compressed pool to a device
        self.writes_done = env.event()

    @property
    def used_bytes(self) -> int:
        """Bytes of slots in use."""
        return self.slots.size - self.slots.free_bytes

    @property
    def has_room(self) -> bool:
        """Whether there is any use in looking for something to write."""
        return self.slots.free_bytes > 0

    def slot_for(self, order: int) -> int | None:
        """A slot for a folio (512 in a row for 2 MiB), or None when there is none."""
        try:
            address = self.slots.allocate_2m() if order else self.slots.allocate_4k()
        except MemoryError:
            return None
        if order:
            self.slots.break_2m(address)
        return address // PAGE

    def write(self, run: Run, free: Free) -> int:
        """Write pages; CPU time of the one who writes, in ns.

        `free` gets, at once or later, the frames that nobody took back meanwhile.
        """
        self._stamp(run.slots)
        return 0

    def _stamp(self, slots: Sequence[int]) -> None:
        """Keep what the refault distance of pages that go out counts from."""
        for slot in slots:
            self._stamps[slot] = self._evicted_pages
        self._evicted_pages += len(slots)

    def read(self, slot: int) -> Wait:
        """Begin to read one page; what that takes from now."""
        raise NotImplementedError(f"{type(self).__name__} holds no page")

    def take_back(self, slot: int) -> int | None:
        """The frame of a page still under writeback, now the caller's; None when written."""
        return None

    def refault_distance(self, slot: int) -> int:
        """Pages evicted since the one in `slot` was (mm/workingset.c)."""
        return self._evicted_pages - self._stamps[slot]

    def free_slots(self, slots: Sequence[int]) -> None:
        """Give slots back. A write under way still ends before its frame is free."""
        for slot in slots:
            del self._stamps[slot]
            self.slots.free_4k(slot * PAGE)

    def _wake(self) -> None:
        """Tell whoever waits for writes that one is done."""
        happened, self.writes_done = self.writes_done, self._env.event()
        happened.succeed()
