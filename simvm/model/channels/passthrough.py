"""The guest's hints of pvmemcontrol (RFC of 2024): a synchronous call for each range.

The guest writes a request into a buffer of its CPU and a register of the device; the VMM
does one system call on its mapping of guest memory and answers (`memory_control`). The
driver has no batches: `batch` is a what-if, n ranges for one exit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from simvm.model.channels.none import NoChannel
from simvm.model.kernel_threads import KernelThread
from simvm.model.queues import Process
from simvm.scenario.passthrough import FREEING

if TYPE_CHECKING:
    from simvm.model.guest import Guest, NamedRegion
    from simvm.model.vcpu import VirtualCpu
    from simvm.scenario.channels import PassthroughChannelSettings


class Passthrough(NoChannel):
    """Names what regions gain, tells what is freed, and sends what phases ask for."""

    def __init__(self, settings: PassthroughChannelSettings) -> None:
        super().__init__(settings)
        self._batch = settings.batch
        self._names = "SET_VMA_ANON_NAME" in settings.operations
        self._info = "INFO" in settings.operations
        freeing = [operation for operation in settings.operations if operation in FREEING]
        self._freeing = freeing[0] if freeing else None
        self._seen: dict[NamedRegion, tuple[int, tuple[int, ...]]] = {}

    def named(self, vcpu: VirtualCpu, guest: Guest, region: NamedRegion) -> Process:
        """Name what the region has and the host knows under no name, or under another."""
        table = guest.processes[region.process].table
        assert table is not None
        now = region.touched_bytes, table.leaves
        if self._names and self._seen.get(region) != now:
            self._seen[region] = now
            ranges = [
                (max(start, vma.start), min(start + length, vma.end))
                for start, length in guest.extents(region)
                for vma in guest.control.vmas.overlapping(start, start + length)
                if vma.flags.name != region.name
            ]
            unnamed = [(start, end - start) for start, end in ranges]
            yield from self._send(vcpu, guest, "SET_VMA_ANON_NAME", unnamed, region.name)

    def freed(
        self, vcpu: VirtualCpu, guest: Guest, extents: Sequence[tuple[int, int]]
    ) -> Process:
        if self._freeing is not None:
            yield from self._send(vcpu, guest, self._freeing, extents)

    def hinted(
        self, vcpu: VirtualCpu, guest: Guest, region: NamedRegion, operation: str
    ) -> Process:
        if operation == "INFO":
            yield from vcpu.enter_core()
            guest.hint_calls += 1
            guest.control.done["INFO"] += 1
            vcpu.exit_to_host()
            yield from vcpu.spend(("hint_ns", guest.host.costs.hint_call_ns))
            return
        yield from self._send(vcpu, guest, operation, guest.extents(region), region.name)

    def serve(self, guest: Guest) -> Process:
        """The driver asks what the device can do, as it starts."""
        if self._info:
            guest.hint_calls += 1
            guest.control.done["INFO"] += 1
            yield from KernelThread(guest).spend(guest.host.costs.hint_call_ns)

    def _send(
        self, vcpu: VirtualCpu, guest: Guest, operation: str,
        ranges: Sequence[tuple[int, int]], name: str = "",
    ) -> Process:  # fmt: skip
        """Calls for `ranges`, `batch` of them at a time; the VMM serves each range by itself."""
        costs = guest.host.costs
        for number, (start, length) in enumerate(ranges):
            yield from vcpu.enter_core()
            if number % self._batch == 0:
                guest.hint_calls += 1
                vcpu.exit_to_host()
                overhead = costs.hint_call_ns
            else:
                overhead = costs.hint_range_ns
            wait = guest.mmu_lock.wait(guest.host.env.now)
            yield from vcpu.spend(("hint_ns", wait + overhead))
            yield from guest.control.operate(vcpu, operation, start, length, name)
