"""Linux' classic pair of lists (mm/vmscan.c), for anonymous memory."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

from simvm.hardware.geometry import PAGE
from simvm.model.policies.base import CLUSTER_PAGES, Decision, Lists

if TYPE_CHECKING:
    from simvm.scenario.reclaim import Watermarks


class ActiveInactive:
    """New folios start inactive, and are activated when they are found accessed.

    From the old end of the inactive list, an accessed folio is activated and any other
    evicted. The active list gives its oldest folios up, accessed or not, while the inactive
    one is small: below active / sqrt(10 x GiB of both).
    """

    ACTIVE, INACTIVE = 1, 2
    new_list = INACTIVE
    refault_list = ACTIVE

    def __init__(self, settings: Watermarks) -> None:
        del settings  # the lists have none

    def choose(self, memory: Lists) -> Decision:
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

    def working_set_pages(self, memory: Lists) -> int:
        return memory.list_bytes(self.ACTIVE) // PAGE
