"""Where the host puts pages that it takes away: settings of each swap device.

What is None comes from the cost set.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from simvm.hardware import Costs
from simvm.scenario import fields as f
from simvm.scenario.base import Model, choice
from simvm.scenario.fields import one_of

MOST_TAIL: Final = 14
"""What a 99th percentile may be over the mean: a log-normal reaches 14.96 and no more."""

RATIOS: Final = {"lz4": 2.63, "lzo_rle": 2.74, "zstd": 3.37}
"""Page over compressed size, from the table that the costs of compressing are from."""

Algorithm = Annotated[Literal["lz4", "lzo_rle", "zstd"], one_of(*RATIOS)]


class NoSwap(Model):
    """Nothing can be swapped out."""

    device: Literal["none"] = "none"


class _Sized(Model):
    size: f.PageMultipleOrZero = 0
    """Of all slots, uncompressed; required."""


class _Block(_Sized):
    latency: f.Duration | None = None
    """Of one 4 KiB request, in the mean."""
    latency_p99: f.Duration | None = None
    """Its 99th percentile, 1 to 14 times `latency`; by default as far above it as in the set."""
    parallelism: f.Parallelism | None = None
    """Requests that the device serves at once."""
    bandwidth: f.Size | None = None
    """Bytes a second."""


def p99_of(settings: _Block, costs: Costs) -> int:
    """The 99th percentile of a device's latency, in ns: its own, or in the set's proportion."""
    mean = settings.latency or costs.nvme_latency_ns
    tail = settings.latency_p99 or mean * costs.nvme_latency_p99_ns // costs.nvme_latency_ns
    return max(mean, min(tail, MOST_TAIL * mean))


class NvmeSwap(_Block):
    """A block device with a queue."""

    device: Literal["nvme"] = "nvme"


class ZramSwap(_Sized):
    """A compressed device in RAM."""

    device: Literal["zram"] = "zram"
    algorithm: Algorithm = "lzo_rle"
    """Sets cost and ratio; Linux' default is lzo-rle."""
    memory_limit: f.PageMultiple | None = None
    """The most RAM that compressed pages may take; by default what there is."""


class ZswapSwap(_Block):
    """A compressed pool in RAM before a block device."""

    device: Literal["zswap"] = "zswap"
    algorithm: Algorithm = "lzo_rle"
    """Sets cost and ratio."""
    max_pool_percent: f.Percent = 20
    """Of RAM; a larger pool accepts nothing (mm/zswap.c)."""
    accept_threshold_percent: f.Percent = 90
    """Of that; a pool that was full accepts again below it."""


class CxlSwap(_Sized):
    """Slower memory beside RAM: pages are demoted to it, and come back or stay when touched."""

    device: Literal["cxl"] = "cxl"
    access: Annotated[Literal["promote", "in_place"], one_of("promote", "in_place")] = "promote"
    """What the first touch of a demoted page does: move it back, or map it where it lies."""
    extra_latency: f.Duration | None = None
    """In place: what an access that misses the caches takes longer than in RAM."""
    miss_share: f.Share | None = None
    """In place: share of the accesses that miss the caches; by default all of them do, which errs
    high."""


Swap = Annotated[
    NoSwap | NvmeSwap | ZramSwap | ZswapSwap | CxlSwap,
    Field(discriminator="device"),
    choice("device", NoSwap, NvmeSwap, ZramSwap, ZswapSwap, CxlSwap),
]
"""A device with its settings."""


def ratio_of(algorithm: str, own: float | None) -> float:
    """What an algorithm reaches on pages on which lz4 reaches `own`; None: on the table's."""
    return RATIOS[algorithm] if own is None else own * RATIOS[algorithm] / RATIOS["lz4"]


class Content(Model):
    """What the pages of a class of guests hold; each page draws once."""

    ratio: f.Ratio | None = None
    """Page over compressed size under lz4, without pages of zeroes; other algorithms reach as much
    more as in the table of costs. By default the table's own ratio."""
    incompressible: f.Share = 0.0
    """Share of pages that no algorithm compresses."""
    zero: f.Share = 0.0
    """Share of pages that are all zeroes."""
    duplicate: f.Share = 0.0
    """Share of pages that are the same, address for address, in all guests of the class."""
