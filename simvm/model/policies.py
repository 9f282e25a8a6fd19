"""Reclaim policies: which folios to take. They decide; `reclaim` acts.

A policy sees accessed bits (harvested for it, and charged) and its own lists; never the
touched bits, which are the truth. Adding one: a class with what `Policy` names, and a line
in `POLICIES`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isqrt
from typing import Protocol

from simvm import _core
from simvm.hardware.geometry import PAGE

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


class ActiveInactive:
    """Linux' classic pair of lists (mm/vmscan.c), for anonymous memory.

    New folios start inactive. From the old end of the inactive list, an accessed folio is
    activated and any other evicted. The active list gives its oldest folios up, accessed
    or not, while the inactive one is small: below active / sqrt(10 x GiB of both).
    """

    ACTIVE, INACTIVE = 1, 2
    new_list = INACTIVE
    refault_list = ACTIVE

    def choose(self, memory: _core.HostMemory) -> Decision:
        decision = Decision()
        active, inactive = memory.list_bytes(self.ACTIVE), memory.list_bytes(self.INACTIVE)
        ratio = isqrt(10 * ((active + inactive) >> 30)) or 1
        if inactive * ratio < active:
            aged = memory.scan(self.ACTIVE, CLUSTER_PAGES)
            decision.moves.append((self.INACTIVE, [folio for folio, _ in aged]))
            decision.young += [folio for folio, accessed in aged if accessed]
            decision.scanned += len(aged)
        old = memory.scan(self.INACTIVE, CLUSTER_PAGES)
        decision.evict = [folio for folio, accessed in old if not accessed]
        activate = [folio for folio, accessed in old if accessed]
        decision.moves.append((self.ACTIVE, activate))
        decision.young += activate
        decision.scanned += len(old)
        return decision

    def working_set_pages(self, memory: _core.HostMemory) -> int:
        return memory.list_bytes(self.ACTIVE) // PAGE


POLICIES: dict[str, type[Policy]] = {"lru": ActiveInactive}
