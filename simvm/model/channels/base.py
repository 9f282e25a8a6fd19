"""What a channel is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from simvm.model.queues import Process

if TYPE_CHECKING:
    from simvm.model.guest import Guest, NamedRegion
    from simvm.model.vcpu import VirtualCpu


class Channel(Protocol):
    """What a guest's kernel does with memory that it has named or freed.

    Made by a call with the settings of its kind, once for each guest.
    """

    @property
    def withheld_bytes(self) -> int:
        """What the channel keeps from the guest, of the guest's memory."""
        ...

    def named(self, vcpu: VirtualCpu, guest: Guest, region: NamedRegion) -> Process:
        """A phase has used a region, which has a name, and may have more memory than before."""
        ...

    def hinted(
        self, vcpu: VirtualCpu, guest: Guest, region: NamedRegion, operation: str
    ) -> Process:
        """A phase asks for an operation on all that its region has."""
        ...

    def freed(
        self, vcpu: VirtualCpu, guest: Guest, extents: Sequence[tuple[int, int]]
    ) -> Process:
        """Guest-physical (start, length) extents are free in the guest."""
        ...

    def reclaimed(self, guest: Guest) -> None:
        """The guest's kernel has freed pages: of its cache, or of a program that goes on."""
        ...

    def out_of_memory(self, vcpu: VirtualCpu, guest: Guest) -> Process:
        """The guest has no free memory: whether the channel gave it some, on the vCPU's time."""
        ...

    def serve(self, guest: Guest) -> Process:
        """What goes on beside the vCPUs from the end of the boot to the guest's end."""
        ...
