"""Swap devices, each in a file of its own behind the interface of `base.SwapDevice`.

Adding one: a file with a class, and a line in `make_device`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simvm import scenario
from simvm.model.swap.base import Run, SwapDevice, Wait
from simvm.model.swap.cxl import Cxl
from simvm.model.swap.none import NoDevice
from simvm.model.swap.nvme import Nvme
from simvm.model.swap.zram import Zram
from simvm.model.swap.zswap import Worker, Zswap

if TYPE_CHECKING:
    from simvm import _core
    from simvm.hardware import Costs
    from simvm.model.clock import Clock

__all__ = ["Run", "SwapDevice", "Wait", "make_device"]


def make_device(
    env: Clock, settings: scenario.Swap, costs: Costs, *, frames: _core.BlockAllocator,
    seed: int, label: str, worker: Worker, tier: _core.BlockAllocator | None = None,
) -> SwapDevice:  # fmt: skip
    """The device that the settings name, empty.

    A compressed pool takes its pages from `frames` and lets `worker` spend the CPU time of
    threads of its own. Draws are of `seed` and `label`. `tier` is slower memory whose pages
    can be mapped, for a device that leaves them where they are.
    """
    if isinstance(settings, scenario.NvmeSwap):
        return Nvme(env, settings, costs, seed, label)
    if isinstance(settings, scenario.ZramSwap):
        return Zram(env, settings, costs, frames, seed, label)
    if isinstance(settings, scenario.ZswapSwap):
        return Zswap(env, settings, costs, frames, seed, label, worker)
    if isinstance(settings, scenario.CxlSwap):
        return Cxl(env, settings, costs, tier)
    return NoDevice(env)
