"""Writes trace files, of the form that :mod:`simvm.workload.trace` describes.

Accesses are written as they come, in one pass: what is known only at the end (counts,
footprint, segments) goes into the footer, with the header.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from simvm.workload.page_set import BLOCK_SHIFT, PAGE_SHIFT, PageSet
from simvm.workload.trace import (
    LINES_PER_PAGE,
    MAX_BLOCKS,
    METADATA_KEY,
    ROW_GROUP_ACCESSES,
    SCHEMA,
    Kind,
    Segment,
    TraceHeader,
    gib_pages,
    refusal,
)

_COMPRESSION_LEVEL = 9


class TraceWriter:
    """Writes a trace beside its final name and renames it when :meth:`finish` is called.

    A context manager: leaving it without `finish` removes what was written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._beside = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._counts = np.zeros(len(Kind), dtype=np.int64)
        self._pages = PageSet()
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self._parquet = pq.ParquetWriter(
            self._beside,
            SCHEMA,
            compression="zstd",
            compression_level=_COMPRESSION_LEVEL,
            use_dictionary=["page", "kind"],
            dictionary_pagesize_limit=8 * ROW_GROUP_ACCESSES,
            write_statistics=False,
            write_page_checksum=True,
            store_schema=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        try:
            self._parquet.close()
        finally:
            self._beside.unlink(missing_ok=True)

    @property
    def accesses(self) -> int:
        """Accesses taken so far."""
        return int(self._counts.sum())

    def append(self, addresses: NDArray[np.uint64], kinds: NDArray[np.uint8]) -> None:
        """Add accesses: byte addresses of the program, and codes of :class:`Kind`.

        Raises
        ------
        InvalidInput
            The program touched more than `MAX_BLOCKS` blocks of 2 MiB.
        """
        if not len(addresses):
            return
        page = (addresses >> np.uint64(PAGE_SHIFT)).astype(np.int64)
        line = ((addresses >> np.uint64(6)) & np.uint64(LINES_PER_PAGE - 1)).astype(np.uint8)
        self._counts += np.bincount(kinds, minlength=len(Kind))
        self._pages.add(page)
        if self._pages.block_count > MAX_BLOCKS:
            raise refusal(
                self.path,
                "distinct_2m_pages",
                str(self._pages.block_count),
                f"a trace touches at most {MAX_BLOCKS} blocks of 2 MiB",
                "record a smaller program, or fewer accesses",
            )
        self._waiting.append(pa.record_batch([page, line, kinds], schema=SCHEMA))
        self._waiting_rows += len(page)
        while self._waiting_rows >= ROW_GROUP_ACCESSES:
            self._write_row_group(ROW_GROUP_ACCESSES)

    def finish(self, **facts: Any) -> TraceHeader:
        """Write the header, with the further `facts` of :class:`TraceHeader`, and rename."""
        if self._waiting_rows:
            self._write_row_group(self._waiting_rows)
        blocks = self._pages.blocks
        segments = _segments(blocks)
        header = TraceHeader(
            loads=int(self._counts[Kind.LOAD]),
            stores=int(self._counts[Kind.STORE]),
            modifies=int(self._counts[Kind.MODIFY]),
            instructions=int(self._counts[Kind.INSTRUCTION]),
            distinct_4k_pages=len(self._pages),
            distinct_2m_pages=len(blocks),
            distinct_1g_pages=gib_pages(segments),
            segments=segments,
            **facts,
        )
        self._parquet.add_key_value_metadata({METADATA_KEY: header.model_dump_json()})
        self._parquet.close()
        os.replace(self._beside, self.path)
        return header

    def _write_row_group(self, rows: int) -> None:
        table = pa.Table.from_batches(self._waiting)
        self._parquet.write_table(table.slice(0, rows), row_group_size=rows)
        rest = table.slice(rows)
        self._waiting = rest.to_batches()
        self._waiting_rows = len(rest)


def _segments(blocks: NDArray[np.int64]) -> tuple[Segment, ...]:
    """Runs of neighbouring blocks, from ascending block numbers."""
    runs = np.split(blocks, np.flatnonzero(np.diff(blocks) > 1) + 1)
    return tuple(
        Segment(start=int(run[0]) << BLOCK_SHIFT, bytes=len(run) << BLOCK_SHIFT) for run in runs
    )
