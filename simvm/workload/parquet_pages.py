"""The page headers of a Parquet column, read before any page is unpacked.

A page says in its header how large it will be when unpacked, and a reader allocates
that much. A file from elsewhere may claim 2 GiB in a few bytes, so what it claims is
added up first. Source: ``PageHeader`` in the Parquet format's ``parquet.thrift`` and
the Thrift compact protocol. Left out: everything but the two sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow.parquet as pq

_MAX_HEADER_BYTES = 4096
_MAX_DEPTH = 8

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY = range(1, 9)
_STRUCT = 12
_UNPACKED_SIZE, _PACKED_SIZE = 2, 3


def page_sizes(file: BinaryIO, column: pq.ColumnChunkMetaData) -> Iterator[int]:
    """Yield the unpacked size in bytes that each page of a column chunk claims.

    Raises
    ------
    ValueError
        A page header does not parse, or a page leaves its chunk.
    """
    start = column.data_page_offset
    if column.dictionary_page_offset is not None:
        start = min(start, column.dictionary_page_offset)
    end = start + column.total_compressed_size
    while start < end:
        file.seek(start)
        header = _Header(file.read(_MAX_HEADER_BYTES))
        sizes = header.integers()
        unpacked, packed = sizes.get(_UNPACKED_SIZE, -1), sizes.get(_PACKED_SIZE, -1)
        start += header.position + packed
        if unpacked < 0 or packed < 0 or start > end:
            raise ValueError("a page leaves its column")
        yield unpacked


class _Header:
    """A cursor over one struct of the Thrift compact protocol."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def integers(self, depth: int = 0) -> dict[int, int]:
        """Read one struct; its integer fields by number, all else passed over."""
        if depth > _MAX_DEPTH:
            raise ValueError("a page header is nested too deeply")
        found: dict[int, int] = {}
        number = 0
        while (head := self._take(1)[0]) != 0:
            step, kind = head >> 4, head & 15
            number = number + step if step else self._signed()
            if kind in (_I16, _I32, _I64):
                found[number] = self._signed()
            elif kind == _STRUCT:
                self.integers(depth + 1)
            elif kind == _BINARY:
                self._take(self._varint())
            elif kind == _DOUBLE:
                self._take(8)
            elif kind == _BYTE:
                self._take(1)
            elif kind not in (_TRUE, _FALSE):
                raise ValueError(f"a page header has a field of unknown type {kind}")
        return found

    def _take(self, count: int) -> bytes:
        taken = self._data[self.position : self.position + count]
        if len(taken) < count:
            raise ValueError("a page header is cut short")
        self.position += count
        return taken

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 63:
                raise ValueError("a page header holds too long a number")

    def _signed(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
