"""The watermarks of free memory, host's and guest's: Linux, mm/page_alloc.c."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

SCALE_FACTOR = 10
"""watermark_scale_factor, in ten-thousandths of memory."""


def min_free_bytes(memory: int) -> int:
    """The min watermark: 4 x sqrt(memory in KiB) KiB within 128 KiB and 256 MiB."""
    return max(128, min(262144, 4 * isqrt(memory >> 10))) << 10


@dataclass(frozen=True)
class Watermarks:
    """Below low kswapd runs, until high; below min who allocates reclaims. In bytes."""

    min_bytes: int
    low_bytes: int
    high_bytes: int

    @classmethod
    def of(
        cls, memory: int, min_free: int | None = None, scale_factor: int = SCALE_FACTOR
    ) -> Watermarks:
        """Those of `memory` bytes: low and high are one and two steps above min.

        A step is a quarter of min, or `scale_factor` ten-thousandths of memory.
        """
        least = min_free or min_free_bytes(memory)
        step = max(least // 4, memory * scale_factor // 10_000)
        return cls(least, least + step, least + 2 * step)
