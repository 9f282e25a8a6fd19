"""What the pages of a guest hold, as far as swap and merging ask: drawn, and never stored.

Each 4 KiB page draws from its address and a key of its class or guest, so the draw does
not depend on time or on other pages. A page is of zeroes, or the same as the page at that
address in every guest of the class, or like no other.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from simvm.hardware.geometry import PAGE

if TYPE_CHECKING:
    from simvm.scenario import Content

ZERO = 0
"""The identity of a page of zeroes."""

_MASK = (1 << 64) - 1


def mix(value: int) -> int:
    """64 well mixed bits of an integer: the finaliser of splitmix64 (Steele et al., 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31


def _key(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


class PageContent:
    """The content of one guest's pages, by address in the space that backs it."""

    def __init__(self, settings: Content, seed: int, class_: str, guest: str) -> None:
        self._zero = round(settings.zero * (1 << 32))
        self._shared = self._zero + round(settings.duplicate * (1 << 32))
        self._raw = round(settings.incompressible * (1 << 32))
        self._share_raw = settings.incompressible
        self.ratio = settings.ratio
        self._of_class = _key(f"content/{seed}/{class_}")
        self._of_guest = _key(f"content/{seed}/{class_}/{guest}")

    def _drawn(self, page: int) -> int:
        return mix(self._of_class ^ page) >> 32

    def identity(self, address: int) -> int | None:
        """The same for pages of the same content; None for a page like no other."""
        page = address // PAGE
        drawn = self._drawn(page)
        if drawn < self._zero:
            return ZERO
        return mix(self._of_class + page) | 1 if drawn < self._shared else None

    def packed_bytes(self, address: int, ratio: float) -> int:
        """Compressed size: 0 for zeroes, 4096 for what does not compress.

        Sizes of the rest are uniform around their mean, so that pages that are not of
        zeroes come to `ratio` in all.
        """
        page = address // PAGE
        drawn = self._drawn(page)
        if drawn < self._zero:
            return 0
        bits = mix((self._of_class if drawn < self._shared else self._of_guest) ^ ~page & _MASK)
        if bits & 0xFFFFFFFF < self._raw:
            return PAGE
        mean = round((PAGE / ratio - PAGE * self._share_raw) / (1 - self._share_raw))
        reach = min(mean // 2, PAGE - mean)
        return mean - reach + (bits >> 32) * (2 * reach + 1) // (1 << 32)
