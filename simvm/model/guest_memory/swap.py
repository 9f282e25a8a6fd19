"""The guest's own swap device, and pages that come back from it.

The device is the virtual machine's disk, behind a queue of its own; what it reads lands in
guest memory, so the host backs the page when it comes. A page comes back alone, on the time
of the vCPU that wants it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import simpy

from simvm import _core
from simvm.hardware.geometry import PAGE
from simvm.model.guest_memory.lists import ANON
from simvm.model.queues import Process
from simvm.model.swap.none import NoDevice
from simvm.model.swap.nvme import Nvme
from simvm.scenario.swap import NvmeSwap

if TYPE_CHECKING:
    from simvm.model.guest_memory.manager import GuestMemory
    from simvm.model.swap import SwapDevice
    from simvm.model.vcpu import VirtualCpu


class GuestSwap:
    """Pages of programs on the guest's own device."""

    def __init__(self, mm: GuestMemory, kernel: _core.GuestKernel) -> None:
        guest, settings = mm.guest, mm.guest.config.swap
        self._mm = mm
        self._kernel = kernel
        self._env = guest.host.env
        self._reads: dict[int, simpy.Event] = {}
        self.device: SwapDevice = NoDevice(self._env)
        if isinstance(settings, NvmeSwap):
            self.device = Nvme(
                self._env, settings, guest.host.costs, guest.scenario.scenario.seed,
                f"{guest.name}/swap",
            )  # fmt: skip
        self.ins = 0
        self.outs = 0

    def page_in(self, vcpu: VirtualCpu, asid: int, va: int) -> Process:
        """Bring a page back; False when there is no memory for it."""
        mm, kernel = self._mm, self._kernel
        va -= va % PAGE
        slot = kernel.slot_of(asid, va)
        if slot is None:
            return True  # another vCPU brought it back
        if slot in self._reads:
            with self._reading(vcpu, slot):
                yield from vcpu.sleep_on(self._reads[slot], "guest_swap_in_ns")
            return True
        frame = self.device.take_back(slot)
        if frame is not None:
            self._map(asid, va, slot, frame)
        else:
            if not mm.spare_bytes:
                if not (yield from mm.out_of_memory(vcpu)):
                    return False
                if kernel.slot_of(asid, va) != slot or slot in self._reads:
                    return True
            with self._reading(vcpu, slot):
                yield from self._read(vcpu, asid, va, slot)
        yield from vcpu.enter_core()
        yield from vcpu.spend(("guest_swap_in_ns", self.device.fault_ns))
        return True

    def _read(self, vcpu: VirtualCpu, asid: int, va: int, slot: int) -> Process:
        memory = self._mm.guest.memory
        frame = memory.allocate_4k()
        done = self._reads[slot] = self._env.event()
        takes = self.device.read(slot)
        try:
            yield from vcpu.sleep_on(
                self._env.timeout(takes.sleep_ns + takes.cpu_ns), "guest_swap_in_ns"
            )
        finally:
            del self._reads[slot]
            done.succeed()
        if self._kernel.slot_of(asid, va) == slot:
            self._map(asid, va, slot, frame)
            vcpu.core.queue_write(frame, PAGE)
        else:  # freed while it was read
            memory.free_4k(frame)

    def _refault(self, slot: int) -> bool:
        """Whether fewer pages went out since than the active list holds (mm/workingset.c)."""
        return self.device.refault_distance(slot) <= self._kernel.list_bytes(ANON + 1) // PAGE

    def _reading(self, vcpu: VirtualCpu, slot: int) -> AbstractContextManager[None]:
        """The guest's own pressure: a page of the working set is waited for, or another one."""
        stalls = vcpu.own_stalls
        return stalls.stalled() if self._refault(slot) else stalls.waiting()

    def _map(self, asid: int, va: int, slot: int, frame: int) -> None:
        """A page of the working set goes to the active list."""
        self._kernel.page_in(asid, va, frame, ANON + self._refault(slot))
        self.device.free_slots([slot])
        self.ins += 1
        guest = self._mm.guest
        if guest.shadow is not None:
            guest.shadow.note_writes(1)
