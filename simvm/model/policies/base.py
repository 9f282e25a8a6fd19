"""What a reclaim policy is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from simvm import _core

CLUSTER_PAGES = 32  # SWAP_CLUSTER_MAX, include/linux/swap.h


@dataclass
class Decision:
    """What one look at the lists came to. Folio ids, each in the order to act in."""

    evict: list[int] = field(default_factory=list)
    moves: list[tuple[int, list[int]]] = field(default_factory=list)   # (list, folios)
    young: list[int] = field(default_factory=list)                     # were accessed
    scanned: int = 0


class Policy(Protocol):
    """Chooses what to reclaim next."""

    new_list: int
    """Where newly backed folios go."""
    refault_list: int
    """Where a refaulted page goes that belongs to the working set."""

    def choose(self, memory: _core.HostMemory) -> Decision:
        """Look at the old ends of the lists and say what to take."""
        ...

    def working_set_pages(self, memory: _core.HostMemory) -> int:
        """A page evicted fewer pages ago than this was of the working set."""
        ...
