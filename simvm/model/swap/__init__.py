"""Swap devices, each in a file of its own behind the interface of `base.SwapDevice`.

Adding one: a file with a class, and a line in `make_device`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simvm.model.swap.base import Run, SwapDevice, Wait
from simvm.model.swap.none import NoDevice
from simvm.model.swap.nvme import Nvme

if TYPE_CHECKING:
    from simvm.hardware import Costs
    from simvm.model.clock import Clock
    from simvm.scenario import Swap

__all__ = ["Run", "SwapDevice", "Wait", "make_device"]


def make_device(env: Clock, settings: Swap, costs: Costs) -> SwapDevice:
    """The device that the settings name, empty."""
    if settings.device == "none":
        return NoDevice(env, 0)
    return Nvme(env, settings, costs)
