"""No swap device: nothing can be swapped out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simvm.model.swap.base import SwapDevice

if TYPE_CHECKING:
    from simvm.model.clock import Clock


class NoDevice(SwapDevice):
    """A device without slots."""

    def __init__(self, env: Clock) -> None:
        super().__init__(env, 0, 0)
