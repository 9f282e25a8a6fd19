"""A guest's processes and their named regions: where they lie, and what maps them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from simvm import _core

if TYPE_CHECKING:
    from simvm.hardware.geometry import TableFormat


class NamedRegion:
    """A region of a process, under the name that the host may see.

    `core` is what is mapped, in whole pages; `asked` is what the program asked for.
    """

    def __init__(self, process: str, name: str, asked: int, core: _core.Region) -> None:
        self.process = process
        self.name = name
        self.asked = asked
        self.core = core
        self.count: Callable[[], int] | None = None     # of touched bytes, if others count them

    @property
    def may_be_huge(self) -> bool:
        """Whether its pages may become 2 MiB: not those of a pool, nor others than THP's."""
        return self.core.order == 1 and not self.core.pooled

    @property
    def used_bytes(self) -> int:
        """What the program accesses: the same for every size of page."""
        return min(self.asked, self.core.size)

    @property
    def touched_bytes(self) -> int:
        """4 KiB for each page accessed since it was allocated."""
        return self.core.touched_bytes if self.count is None else self.count()


class Space:
    """A process: its address space and, in a virtual machine, its guest page table.

    Its regions lie in [`next_address`, `end`); a container's process may move on to others.
    """

    def __init__(
        self, core: _core.AddressSpace, table: _core.PageTable | None, first: int, end: int
    ) -> None:
        self.core = core
        self.table = table
        self.move(first, end)

    def move(self, first: int, end: int) -> None:
        """Go on elsewhere with addresses."""
        self.next_address = self._first = first
        self.end = end

    def reuse(self) -> None:
        """Begin anew with addresses, when no region is left."""
        self.next_address = self._first


def entries_of(table: _core.PageTable) -> int:
    """Entries in use: leaves, and one for each table page below the root."""
    return sum(table.leaves) + table.table_pages - 1


def new_table(
    shape: TableFormat, memory: _core.BlockAllocator, *, mirrored: bool = False
) -> _core.PageTable:
    """An empty page table of a format."""
    return _core.PageTable(
        shape.levels, memory, mirrored, root_bits=shape.root_bits, contiguous=shape.contiguous
    )
