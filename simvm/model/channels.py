"""Channels by which a guest tells the host about its memory.

The guest calls a channel on the vCPU that frees or names memory, and pays for the call;
what the call does to the SLAT goes through the host's notifier and costs an unmapping and
a shootdown. Adding one: a class with these methods, and a line in `CHANNELS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from simvm.model.queues import Process

if TYPE_CHECKING:
    from simvm.model.guest import Guest
    from simvm.model.vcpu import VirtualCpu


class Channel(Protocol):
    """What a guest's kernel does with memory that it has named or freed."""

    def named(self, vcpu: VirtualCpu, guest: Guest) -> Process:
        """A region was made and has a name."""
        ...

    def freed(
        self, vcpu: VirtualCpu, guest: Guest, extents: Sequence[tuple[int, int]]
    ) -> Process:
        """Guest-physical (start, length) extents are free in the guest."""
        ...


class NoChannel:
    """The host learns nothing: what the guest frees stays backed."""

    def named(self, vcpu: VirtualCpu, guest: Guest) -> Process:
        yield from ()

    def freed(
        self, vcpu: VirtualCpu, guest: Guest, extents: Sequence[tuple[int, int]]
    ) -> Process:
        yield from ()


class Passthrough:
    """The guest's hints of pvmemcontrol (RFC of 2024): one synchronous call per range.

    Modelled: SET_VMA_ANON_NAME when a region is made, DONTNEED when memory is freed. The
    VMM passes a call on as madvise or prctl on its own mapping of guest memory.
    """

    def named(self, vcpu: VirtualCpu, guest: Guest) -> Process:
        guest.hint_calls += 1
        vcpu.exit_to_host()
        yield from vcpu.spend(("hint_ns", guest.host.costs.hint_call_ns))

    def freed(
        self, vcpu: VirtualCpu, guest: Guest, extents: Sequence[tuple[int, int]]
    ) -> Process:
        for start, length in extents:
            guest.hint_calls += 1
            vcpu.exit_to_host()
            wait = guest.mmu_lock.wait(guest.host.env.now)
            cost = guest.zap(start, length)
            yield from vcpu.spend(("hint_ns", wait + guest.host.costs.hint_call_ns + cost))


CHANNELS: dict[str, type[Channel]] = {"none": NoChannel, "passthrough": Passthrough}
