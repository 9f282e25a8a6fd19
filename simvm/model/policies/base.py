"""What a reclaim policy is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from simvm import _core
    from simvm.model.clock import Clock
    from simvm.scenario.reclaim import Watermarks

CLUSTER_PAGES = 32  # SWAP_CLUSTER_MAX, include/linux/swap.h


@dataclass
class Decision:
    """What one look at the lists came to. Folio ids, each in the order to act in."""

    evict: list[int] = field(default_factory=list)
    moves: list[tuple[int, list[int]]] = field(default_factory=list)   # (list, folios)
    young: list[int] = field(default_factory=list)                     # were accessed
    scanned: int = 0
    around: list[int] = field(default_factory=list)
    """Folios whose neighbours in the page table are to be looked at, too."""
    walk: bool = False
    """Whether to walk all page tables for accessed bits."""
    young_list: int = 0
    """Where folios go that `around` or `walk` find accessed."""
    new_list: int | None = None
    """Where newly backed folios go from now on."""


class Lists:
    """The lists of one group of guests, as its policy sees them."""

    def __init__(self, env: Clock, memory: _core.HostMemory, group: int) -> None:
        self._env = env
        self._memory = memory
        self.group = group

    @property
    def now(self) -> int:
        """Simulated time, in ns."""
        return self._env.now

    def list_bytes(self, which: int) -> int:
        """Bytes of the folios on one list."""
        return self._memory.list_bytes(which, self.group)

    def scan(self, which: int, pages: int) -> list[tuple[int, bool]]:
        """Folios from the old end of a list, and whether each was accessed; clears their bits."""
        return self._memory.scan(which, pages, self.group)


class Policy(Protocol):
    """Chooses what to reclaim next, from one group of guests."""

    def __init__(self, settings: Watermarks) -> None:
        """`settings` are those of `host.reclaim` for this policy."""
        ...

    @property
    def new_list(self) -> int:
        """Where newly backed folios go."""
        ...

    @property
    def refault_list(self) -> int:
        """Where a refaulted page goes that belongs to the working set."""
        ...

    def choose(self, memory: Lists) -> Decision:
        """Look at the old ends of the lists and say what to take."""
        ...

    def working_set_pages(self, memory: Lists) -> int:
        """A page evicted fewer pages ago than this was of the working set."""
        ...
