"""The MMUs of host cores, and the invalidations that each has yet to apply.

Entries carry the number of their guest (VPID, VMID), so those of several guests can be in
one MMU. A change of a guest's mappings is queued at every core that the guest has run on,
and applied when one of its vCPUs next enters there, before its first access: what KVM does
with requests to flush. Nobody can find the entries of a guest that has ended, since numbers
of guests are not used again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from simvm import _core
from simvm.errors import SimulationFailed
from simvm.units import GIB

if TYPE_CHECKING:
    from simvm.hardware import Cpu
    from simvm.scenario import Host as Settings


class VaRange(NamedTuple):
    """Addresses of one process."""

    asid: int
    address: int
    size: int


class GpaRange(NamedTuple):
    """Guest-physical addresses."""

    address: int
    size: int


Flush = VaRange | GpaRange | None
"""What a guest must drop; None: all that it has."""

CEILINGS = {
    VaRange: 33,    # tlb_single_page_flush_ceiling, Linux, arch/x86/mm/tlb.c
    GpaRange: 512,  # MAX_DVM_OPS, Linux, arch/arm64/include/asm/tlbflush.h
}
"""How many ranges may wait; beyond that everything goes."""


class CoreMmu:
    """The MMU of one host core."""

    def __init__(self, cpu: Cpu, settings: Settings, tagged: bool) -> None:
        self.mmu = _core.Mmu(cpu.geometry, targets=settings.exact_flushes)
        above = settings.tier_bytes + GIB if settings.tier_bytes else 0
        if self.mmu.reach < settings.memory + above:
            raise SimulationFailed("the data caches are too small to tell host memory apart")
        self._tagged = tagged
        self._pending: dict[int, list[VaRange | GpaRange] | None] = {}
        self._guest: int | None = None      # who ran here last

    def enter(self, guest: int) -> None:
        """A vCPU of the guest comes onto the core. Without tags no other guest's entry stays."""
        if not self._tagged and self._guest not in (None, guest):
            self.flush_all()
        self._guest = guest

    def queue(self, guest: int, flush: Flush) -> None:
        """Drop entries of the guest before its next access here."""
        pending = self._pending.setdefault(guest, [])
        if flush is None or (pending is not None and len(pending) >= CEILINGS[type(flush)]):
            self._pending[guest] = None
        elif pending is not None:
            pending.append(flush)

    def behind(self, guest: int) -> bool:
        """Whether something is queued for the guest."""
        return guest in self._pending

    def catch_up(self, guest: int) -> None:
        """Apply what was queued for the guest."""
        pending = self._pending.pop(guest, [])
        if pending is None:
            self.mmu.flush_guest(guest)
            return
        for flush in pending:
            if isinstance(flush, VaRange):
                self.mmu.flush_range(flush.asid, flush.address, flush.size, guest)
            else:
                self.mmu.flush_gpa(flush.address, flush.size, guest)

    def flush_all(self) -> None:
        """Drop everything, at once."""
        self._pending.clear()
        self.mmu.flush_all()

    def forget(self, guest: int) -> None:
        """The guest has ended: nobody will look for its entries."""
        self._pending.pop(guest, None)
