"""What channels share that size a guest: how much the host wants, and ranges of memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simvm.model.guest import Guest
    from simvm.scenario.channels import SizedChannelSettings


def extents_of(addresses: Sequence[int], size: int) -> list[tuple[int, int]]:
    """Pages or blocks of one size as (start, length) of those that lie in a row, in order."""
    extents: list[tuple[int, int]] = []
    for address in sorted(addresses):
        if extents and sum(extents[-1]) == address:
            extents[-1] = extents[-1][0], extents[-1][1] + size
        else:
            extents.append((address, size))
    return extents


class Controller:
    """Says at any time what the host asks a channel to withhold from a guest."""

    def __init__(self, settings: SizedChannelSettings) -> None:
        self._keep_free = settings.keep_free
        self._interval = settings.interval
        self._sizes = settings.schedule or {}
        if settings.target is not None:
            self._sizes = {0: settings.target}

    def wanted(self, guest: Guest, withheld: int) -> int:
        """Bytes to withhold now, when `withheld` are.

        With `keep_free`, what is free beyond it; what is missing comes back.
        """
        most = guest.config.memory_max
        if self._keep_free is not None:
            wanted = withheld + guest.memory.free_bytes - self._keep_free
            return max(0, min(most, wanted))
        now = guest.host.env.now
        size = guest.config.memory
        for at, other in self._sizes.items():
            if at <= now:
                size = other
        return most - size

    def pause(self, asked: int, now: int) -> int | None:
        """ns until the answer given at `asked` may be another; None when it stays."""
        if self._keep_free is not None:
            return self._interval
        later = [max(0, at - now) for at in self._sizes if at > asked]
        return min(later, default=None)
