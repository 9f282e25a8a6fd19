"""One vCPU on real tables and memory of the compiled core, without a simulation around it.

Faults are served at once and cost nothing; what is left is translation. For measuring the
core and for holding it to laws. Left out: time, reclaim, other guests.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Final

import numpy as np

from simvm.errors import SimulationFailed
from simvm.hardware.geometry import ORDER_BYTES, MmuGeometry
from simvm.units import GIB

REGION_BASE: Final = 1 << 40
_ENDLESS: Final = 1 << 62
_CYCLES_PER_ACCESS: Final = 20


class Machine:
    """A region of `size` bytes in a guest, or with `guest_order` None in the host itself.

    Parameters
    ----------
    guest_order, host_order
        Leaves of the guest and of the host: 0 is 4 KiB, 1 is 2 MiB; the guest may have 2,
        which is 1 GiB and not zeroed.
    """

    def __init__(
        self, core: ModuleType, size: int, guest_order: int | None, host_order: int
    ) -> None:
        self._core = core
        span = ORDER_BYTES[guest_order or 0]
        guest_bytes = -(-size // GIB) * GIB + GIB
        self.host = core.HostMemory(guest_bytes + guest_bytes // 32 + GIB)
        self.host_table = core.PageTable(4, self.host.frames, mirrored=guest_order is not None)
        self._memory = core.BlockAllocator(0 if guest_order is None else guest_bytes)
        end = 0 if guest_order is None else guest_bytes
        self._backing = core.Backing(self.host, self.host_table, 1, host_order, end)
        self._guest_table = None if guest_order is None else core.PageTable(4, self._memory)
        self._space = core.AddressSpace(1, self.host_table, self._guest_table)
        self._size, self._order = -(-size // span) * span, guest_order or 0
        self.forget_touches()

    @property
    def region_bytes(self) -> int:
        """Size of the region, a multiple of the guest's leaf."""
        return self._size

    @property
    def touched_pages(self) -> int:
        """Distinct 4 KiB pages accessed since the last `forget_touches`."""
        return int(self.region.touched_bytes) // ORDER_BYTES[0]

    @property
    def backed_pages(self) -> tuple[int, int, int]:
        """Leaves of 4 KiB, 2 MiB and 1 GiB with which the host backs the region."""
        held = self.region.backing_of(self._backing, self._guest_table)
        small, large, giant = (held[order] // ORDER_BYTES[order] for order in (0, 1, 2))
        return small, large, giant

    def forget_touches(self) -> None:
        """Take every page for untouched. What backs it stays."""
        self.region = self._core.Region(REGION_BASE, self._size, self._order)

    def vcpu(self, geometry: MmuGeometry) -> Any:
        """A new vCPU with an empty MMU."""
        vcpu = self._core.Vcpu(self._core.Mmu(geometry))
        vcpu.set_costs([1, 1, 1], 1, 1)
        vcpu.set_phase(_CYCLES_PER_ACCESS, 1.0)
        return vcpu

    def run(self, vcpu: Any, stream: Any, accesses: int) -> None:
        """Let the vCPU do so many accesses of the stream; a trace may end before."""
        end = vcpu.done + accesses
        while vcpu.done < end:
            left = end - vcpu.done
            reason = vcpu.run(
                self._space, self._backing, self._memory, self.region, stream,
                left, _ENDLESS, _ENDLESS, _ENDLESS,
            )  # fmt: skip
            if reason == self._core.RUN_STREAM_END:
                return
            if reason not in (self._core.RUN_BUDGET, self._core.RUN_TRAIN):
                raise SimulationFailed(f"a vCPU alone on its host stopped for reason {reason}")

    def counted(self, vcpu: Any, stream: Any, accesses: int) -> dict[str, int]:
        """Run, and by how much each counter of the vCPU grew."""
        before = vcpu.counters()
        self.run(vcpu, stream, accesses)
        after = vcpu.counters()
        return {name: after[name] - before[name] for name in after}

    def populate(self, stride: int = ORDER_BYTES[0]) -> Any:
        """Write every `stride` bytes of the region once; the vCPU that did it."""
        vcpu = self.vcpu(MmuGeometry.bare())
        stream = self._core.Stream.strided(
            np.random.PCG64(0), self._size, stride, 0, self._size, 1.0
        )
        self.run(vcpu, stream, self._size // stride)
        return vcpu
