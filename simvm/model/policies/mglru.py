"""Linux' lists by generation: Documentation/admin-guide/mm/multigen_lru.rst, mm/vmscan.c.

Aging walks the page tables of all guests, puts what was accessed into the youngest
generation and opens a new one. Eviction takes the oldest generation but one of the two
youngest; a folio found accessed there goes to the youngest with those of its neighbours
that were accessed as well, so that they need no look of their own.

Simplified: what a fault maps, read from swap or new, is youngest; there are no tiers, which
order pages by accesses through file descriptors, and guest memory is mapped; a walk visits
all tables, where Linux skips those in which the last one found little (aging costs more
here). Folios change lists at once, where Linux moves them when it next comes across them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simvm.hardware.geometry import PAGE
from simvm.model.policies.base import CLUSTER_PAGES, Decision, Lists
from simvm.scenario.reclaim import MglruReclaim

if TYPE_CHECKING:
    from simvm.scenario.reclaim import Watermarks

GENERATIONS = 4     # MAX_NR_GENS, include/linux/mmzone.h
PROTECTED = 2       # MIN_NR_GENS: the youngest, which are not evicted


class MultiGen:
    """Generations by number, the youngest highest; generation n is list 1 + n mod 4."""

    def __init__(self, settings: Watermarks) -> None:
        assert isinstance(settings, MglruReclaim)
        self._min_ttl = settings.min_ttl
        self._oldest, self._youngest = 0, PROTECTED + 1
        self._born = [0] * GENERATIONS      # by list, when the generation was opened, in ns

    @property
    def new_list(self) -> int:
        return 1 + self._youngest % GENERATIONS

    @property
    def refault_list(self) -> int:
        return self.new_list

    def choose(self, memory: Lists) -> Decision:
        sizes = [memory.list_bytes(1 + which) for which in range(GENERATIONS)]
        if not sum(sizes):
            return Decision()
        while (
            self._oldest + PROTECTED <= self._youngest
            and not sizes[self._oldest % GENERATIONS]
        ):
            self._oldest += 1
        if self._must_age(sizes):
            return self._age(memory.now)
        if memory.now < self._born[self._oldest % GENERATIONS] + self._min_ttl:
            return Decision()
        old = memory.scan(1 + self._oldest % GENERATIONS, CLUSTER_PAGES)
        young = [folio for folio, accessed in old if accessed]
        return Decision(
            evict=[folio for folio, accessed in old if not accessed],
            moves=[(self.new_list, young)], young=young, scanned=len(old),
            around=young, young_list=self.new_list,
        )  # fmt: skip

    def _must_age(self, sizes: list[int]) -> bool:
        """Whether the generations are too few, or lie unevenly (`should_run_aging`)."""
        if self._oldest + PROTECTED != self._youngest:
            return self._oldest + PROTECTED > self._youngest
        young = sizes[self._youngest % GENERATIONS]
        old = sizes[self._oldest % GENERATIONS]
        return young * PROTECTED > sum(sizes) or old * (PROTECTED + 2) < sum(sizes)

    def _age(self, now: int) -> Decision:
        """What the walk finds joins the generation that was youngest until now."""
        found = self.new_list
        self._youngest += 1
        self._born[self._youngest % GENERATIONS] = now
        return Decision(walk=True, young_list=found, new_list=self.new_list)

    def working_set_pages(self, memory: Lists) -> int:
        """The generations that are protected."""
        youngest = (1 + (self._youngest - n) % GENERATIONS for n in range(PROTECTED))
        return sum(memory.list_bytes(which) for which in youngest) // PAGE
