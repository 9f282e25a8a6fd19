"""A set of 4 KiB pages that stays small however far apart they lie."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

PAGE_SHIFT = 12
BLOCK_SHIFT = 21
PAGES_PER_BLOCK = 1 << (BLOCK_SHIFT - PAGE_SHIFT)


class PageSet:
    """A set of 4 KiB pages: one bitmap of 64 bytes for each 2 MiB block in it."""

    def __init__(self) -> None:
        self._row: dict[int, int] = {}
        self._bits = np.zeros((64, PAGES_PER_BLOCK // 8), dtype=np.uint8)

    def add(self, pages: NDArray[np.int64]) -> None:
        """Add page numbers, repeated or not, in any order."""
        distinct = np.sort(pc.unique(pa.array(pages)).to_numpy())
        block_of = distinct >> (BLOCK_SHIFT - PAGE_SHIFT)
        blocks, inverse = np.unique(block_of, return_inverse=True)
        rows = np.array([self._row.setdefault(b, len(self._row)) for b in blocks.tolist()])
        if len(self._row) > len(self._bits):
            grown = np.zeros((2 * len(self._row), self._bits.shape[1]), dtype=np.uint8)
            grown[: len(self._bits)] = self._bits
            self._bits = grown
        within = distinct & (PAGES_PER_BLOCK - 1)
        bit = np.left_shift(np.uint8(1), (within & 7).astype(np.uint8))
        np.bitwise_or.at(self._bits, (rows[inverse], within >> 3), bit)

    @property
    def block_count(self) -> int:
        """How many 2 MiB blocks were touched."""
        return len(self._row)

    @property
    def blocks(self) -> NDArray[np.int64]:
        """The numbers of the 2 MiB blocks touched, ascending."""
        return np.sort(np.array(list(self._row), dtype=np.int64))

    def __len__(self) -> int:
        return int(np.bitwise_count(self._bits).sum(dtype=np.int64))
