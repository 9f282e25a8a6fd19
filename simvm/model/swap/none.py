"""No swap device: nothing can be swapped out."""

from __future__ import annotations

from simvm.model.swap.base import SwapDevice


class NoDevice(SwapDevice):
    """A device without slots."""
