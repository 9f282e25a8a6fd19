"""No channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from simvm.model.queues import Process

if TYPE_CHECKING:
    from simvm.model.guest import Guest, NamedRegion
    from simvm.model.vcpu import VirtualCpu
    from simvm.scenario import ChannelSettings


class NoChannel:
    """The host learns nothing: what the guest frees stays backed. Others build on it."""

    def __init__(self, settings: ChannelSettings) -> None:
        self.settings = settings
        self.withheld_bytes = 0

    def named(self, vcpu: VirtualCpu, guest: Guest, region: NamedRegion) -> Process:
        yield from ()

    def hinted(
        self, vcpu: VirtualCpu, guest: Guest, region: NamedRegion, operation: str
    ) -> Process:
        yield from ()

    def freed(
        self, vcpu: VirtualCpu, guest: Guest, extents: Sequence[tuple[int, int]]
    ) -> Process:
        yield from ()

    def reclaimed(self, guest: Guest) -> None:
        """Nobody is told."""

    def out_of_memory(self, vcpu: VirtualCpu, guest: Guest) -> Process:
        yield from ()
        return False

    def serve(self, guest: Guest) -> Process:
        yield from ()
