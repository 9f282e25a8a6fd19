"""The host's view of a guest's memory: ranges (VMAs) of the VMM's mapping, each with its flags.

A call that changes a flag, a protection or a name on a part of a VMA splits it; neighbours
that are alike become one again. The kernel refuses a split beyond `vm.max_map_count`
(`split_vma`, mm/vma.c, formerly mm/mmap.c), so a guest that asks for many small ranges
is told no. Addresses are guest-physical: one mapping holds all of guest memory, as with
one memory slot. The mappings that the VMM itself needs, some hundreds, do not count.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Literal, NamedTuple

Protection = Literal["rw", "r", "w", "none"]


class Flags(NamedTuple):
    """What a VMA has beside its range."""

    name: str | None = None
    locked: bool = False
    protection: Protection = "rw"
    mergeable: bool = False
    dontdump: bool = False


class Vma(NamedTuple):
    """Guest-physical [start, end)."""

    start: int
    end: int
    flags: Flags


class TooManyVmas(Exception):
    """A split that `limit` does not allow. What was changed before it stays changed."""


class Vmas:
    """The ranges of `size` bytes of guest memory: sorted, without gaps, `limit` at most."""

    def __init__(self, size: int, limit: int, *, mergeable: bool = False) -> None:
        self._size = size
        self._limit = limit
        self._starts = [0]
        self._flags = [Flags(mergeable=mergeable)]

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Vma]:
        return self.overlapping(0, self._size)

    def overlapping(self, start: int, end: int) -> Iterator[Vma]:
        """The VMAs that have a part of [start, end), in order and whole."""
        at = bisect_right(self._starts, start) - 1
        while at < len(self._starts) and self._starts[at] < end:
            yield Vma(self._starts[at], self._end(at), self._flags[at])
            at += 1

    def at(self, address: int) -> Vma:
        """The VMA of an address."""
        return next(self.overlapping(address, address + 1))

    def mergeable(self) -> list[tuple[int, int]]:
        """The ranges (start, end) that same-page merging may scan."""
        return [(vma.start, vma.end) for vma in self if vma.flags.mergeable]

    @property
    def locked_bytes(self) -> int:
        """Bytes of locked VMAs (VmLck of the VMM)."""
        return sum(vma.end - vma.start for vma in self if vma.flags.locked)

    def change(self, start: int, end: int, **flags: object) -> int:
        """Give [start, end) other flags; how many VMAs that changed.

        VMA by VMA, as `vma_modify` does: what fits a neighbour joins it, else what is left
        of the VMA is split off. TooManyVmas when there are too many for that.
        """
        changed = 0
        while start < end:
            at = bisect_right(self._starts, start) - 1
            new = self._flags[at]._replace(**flags)  # type: ignore[arg-type]
            piece_end = min(self._end(at), end)
            if new != self._flags[at]:
                self._change_one(at, start, piece_end, new)
                changed += 1
            start = piece_end
        return changed

    def _end(self, at: int) -> int:
        return self._starts[at + 1] if at + 1 < len(self._starts) else self._size

    def _change_one(self, at: int, start: int, end: int, new: Flags) -> None:
        """Change [start, end), which lies in the VMA `at`."""
        first, last = start == self._starts[at], end == self._end(at)
        joins_left = first and at > 0 and self._flags[at - 1] == new
        joins_right = last and at + 1 < len(self._flags) and self._flags[at + 1] == new
        if first and last:
            self._flags[at] = new
            if joins_right:
                self._remove(at + 1)
            if joins_left:
                self._remove(at)
        elif joins_left:
            self._starts[at] = end
        elif joins_right:
            self._starts[at + 1] = start
        else:
            if not first:
                at = self._split(at, start)
            if not last:
                self._split(at, end)
            self._flags[at] = new

    def _split(self, at: int, address: int) -> int:
        """Split a VMA in two that are alike; the place of the upper one."""
        if len(self._starts) >= self._limit:
            raise TooManyVmas
        self._starts.insert(at + 1, address)
        self._flags.insert(at + 1, self._flags[at])
        return at + 1

    def _remove(self, at: int) -> None:
        """A VMA becomes part of the one below it."""
        del self._starts[at], self._flags[at]
