"""How much of a guest's memory a host wants: a fixed size, a schedule, or by what is free."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simvm.model.guest import Guest
    from simvm.scenario.channels import SizedChannelSettings


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
        memory = guest.config.memory
        if self._keep_free is not None:
            wanted = withheld + guest.memory.free_bytes - self._keep_free
            return max(0, min(memory, wanted))
        now = guest.host.env.now
        size = memory
        for at, other in self._sizes.items():
            if at <= now:
                size = other
        return memory - size

    def pause(self, now: int) -> int | None:
        """ns until the answer may be another; None when it stays."""
        if self._keep_free is not None:
            return self._interval
        later = [at - now for at in self._sizes if at > now]
        return min(later, default=None)
