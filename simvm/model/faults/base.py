"""What every fault path is, and what more than one of them needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from simvm.model.queues import Process

if TYPE_CHECKING:
    from simvm.model.host import Host
    from simvm.model.vcpu import VirtualCpu


class FaultPath(Protocol):
    """Serves the faults that a vCPU has just taken, on its time."""

    def __init__(self, host: Host) -> None: ...

    def train(self, longest: int) -> int:
        """How many faults may travel together now."""
        ...

    def serve(self, vcpu: VirtualCpu, faults: int, service: int) -> Process:
        """Let `faults` faults with `service` ns in all be served; charge the vCPU."""
        ...


def begin_anew_if_overtaken(vcpu: VirtualCpu, seen: int) -> Process:
    """A fault is done again when an invalidation has come since `seen` of them (KVM's
    `mmu_invalidate_seq`, include/linux/kvm_host.h)."""
    guest = vcpu.guest
    if guest.invalidations != seen:
        guest.fault_retries += 1
        yield from vcpu.spend(("fault_service_ns", guest.host.costs.slat_fault_4k_ns))
