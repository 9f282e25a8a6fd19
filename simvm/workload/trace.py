"""The file format of recorded memory traces: one access after another of a real program.

A trace is a Parquet file (zstd, page checksums, row groups of 1 Mi accesses) of
three columns: ``page``, the number of the 4 KiB page in the program's own address
space; ``line``, the 64-byte line within it; ``kind``, the code of a :class:`Kind`.
The schema's metadata hold a header in JSON under the key ``simvm.trace``.

A replay lives in *one* region. The runs of neighbouring 2 MiB blocks that the
program touched are its *segments*; the region is these segments, packed one after
another. An address keeps its offset within 2 MiB, so that a leaf of 4 KiB or
2 MiB covers in the replay exactly what it covered in the program. What lay in one
1 GiB page may not do so afterwards, and the other way round.

Left out: the six lowest bits of an address and the size of an access (the model
sees lines and pages; an access that crosses into another line or page counts once,
where it starts), the time between accesses, which thread or process made them, and
values. A trace is an order of addresses.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import IntEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simvm.errors import InvalidInput, Mistake
from simvm.workload.page_set import BLOCK_SHIFT, PAGE_SHIFT, PAGES_PER_BLOCK, PageSet
from simvm.workload.parquet_files import DECODE_ERRORS, check_marks, parquet_file
from simvm.workload.parquet_files import refusal as refusal
from simvm.workload.parquet_pages import page_sizes

FORMAT = "simvm-trace"
VERSION = 1
SUFFIX = ".simvm-trace"

ROW_GROUP_ACCESSES = 1 << 20
"""Accesses in a row group, the most that a reader ever has to decode at once."""

MAX_BLOCKS = 1 << 18
"""The most 2 MiB blocks a trace may touch: a region of 512 GiB."""

MAX_SEGMENTS = 1 << 16

_GIB_SHIFT = 30
_BLOCK_BYTES = 1 << BLOCK_SHIFT
_ADDRESS_SPACE_BYTES = 1 << 64
LINES_PER_PAGE = 64

METADATA_KEY = b"simvm.trace"
# Of one column in one row group: a dictionary of 8 bytes for every access, and its indices.
_MAX_COLUMN_BYTES = 16 * ROW_GROUP_ACCESSES

SCHEMA = pa.schema(
    [
        pa.field("page", pa.int64(), nullable=False),
        pa.field("line", pa.uint8(), nullable=False),
        pa.field("kind", pa.uint8(), nullable=False),
    ]
)


class Kind(IntEnum):
    """What an access was. Bit 0 says whether it writes."""

    LOAD = 0
    STORE = 1
    INSTRUCTION = 2
    MODIFY = 3
    """Read and written by one instruction: one access, which writes."""


_Count = Annotated[int, Field(ge=0, lt=1 << 63)]
_Address = Annotated[int, Field(ge=0, lt=_ADDRESS_SPACE_BYTES)]


class Segment(BaseModel):
    """A run of neighbouring 2 MiB blocks, all touched, in the program's addresses."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    start: _Address
    bytes: Annotated[int, Field(gt=0, le=MAX_BLOCKS << BLOCK_SHIFT)]


class MalformedLine(BaseModel):
    """A line of the source that was no access, with its number (from 1) and its beginning."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    line: _Count
    text: Annotated[str, Field(max_length=1000)]


class TraceHeader(BaseModel):
    """What a trace file says about itself; counts are of accesses unless named otherwise."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: str = FORMAT
    version: int = VERSION
    source: str
    """What wrote the original, such as ``lackey``."""
    program: str
    command: str
    loads: _Count
    stores: _Count
    modifies: _Count
    instructions: _Count
    """Instruction fetches in the file: 0 unless they were asked for."""
    skipped: _Count = 0
    """Accesses of the original that were left out before the first one here."""
    complete: bool = True
    """False when the original went on after the last access here."""
    source_lines: _Count = 0
    malformed_lines: _Count = 0
    malformed_first: tuple[MalformedLine, ...] = ()
    distinct_4k_pages: _Count
    distinct_2m_pages: _Count
    distinct_1g_pages: _Count
    """Distinct 1 GiB pages in the program's own address space."""
    segments: Annotated[tuple[Segment, ...], Field(min_length=1, max_length=MAX_SEGMENTS)]

    @property
    def accesses(self) -> int:
        """All accesses in the file."""
        return self.loads + self.stores + self.modifies + self.instructions

    @property
    def writes(self) -> int:
        """Accesses that write: stores and modifies."""
        return self.stores + self.modifies

    @property
    def region_bytes(self) -> int:
        """Size of the region a replay needs, a multiple of 2 MiB."""
        return sum(segment.bytes for segment in self.segments)


class TraceFile:
    """An opened trace, whose header and layout have been checked.

    Opening reads no access. Contents are checked as they are read: counts against
    the header when :meth:`chunks` reaches the end, all of it by :meth:`verify`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.header = read_header(self.path)
        starts = np.array([s.start for s in self.header.segments], dtype=np.uint64)
        sizes = np.array([s.bytes for s in self.header.segments], dtype=np.uint64)
        shift = np.uint64(PAGE_SHIFT)
        self._segment_start = (starts >> shift).astype(np.int64)
        self._segment_pages = (sizes >> shift).astype(np.int64)
        self._segment_target = np.cumsum(self._segment_pages) - self._segment_pages

    @property
    def accesses(self) -> int:
        """Accesses in the file."""
        return self.header.accesses

    @property
    def region_bytes(self) -> int:
        """Size in bytes of the region that a replay needs, a multiple of 2 MiB."""
        return self.header.region_bytes

    def chunks(self, max_accesses: int = ROW_GROUP_ACCESSES) -> Iterator[NDArray[np.uint64]]:
        """Yield the accesses in order, as the simulator takes them.

        Each is ``byte offset in the region << 1 | write``; the offset is that of a
        64-byte line. An array holds 1 to `max_accesses` of them.

        Raises
        ------
        InvalidInput
            The file is damaged, or its content disagrees with its header.
        """
        for page, line, kind in self.records(max_accesses):
            word = page.astype(np.uint64) << np.uint64(PAGE_SHIFT + 1)
            word |= line.astype(np.uint64) << np.uint64(7)
            word |= kind & np.uint8(1)
            yield word

    def records(
        self, max_accesses: int = ROW_GROUP_ACCESSES
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint8]]]:
        """Yield (4 KiB page of the region, line, kind) of the accesses, in order.

        Raises
        ------
        InvalidInput
            As :meth:`chunks`.
        """
        if max_accesses < 1:
            raise ValueError(f"max_accesses(={max_accesses}) must be 1 or more.")
        counts = np.zeros(len(Kind), dtype=np.int64)
        for page, line, kind in _raw_records(self.path, max_accesses):
            if int(line.max()) >= LINES_PER_PAGE or int(kind.max()) >= len(Kind):
                raise refusal(
                    self.path,
                    "line, kind",
                    f"{line.max()}, {kind.max()}",
                    f"lines are below {LINES_PER_PAGE}, kinds below {len(Kind)}",
                    _IMPORT_AGAIN,
                )
            counts += np.bincount(kind, minlength=len(Kind))
            yield self._place(page), line, kind
        header = self.header
        stated = (header.loads, header.stores, header.instructions, header.modifies)
        if tuple(counts.tolist()) != stated:
            raise refusal(
                self.path,
                "loads, stores, instructions, modifies",
                ", ".join(map(str, stated)),
                f"the file holds {', '.join(map(str, counts.tolist()))}",
                _IMPORT_AGAIN,
            )

    def verify(self) -> None:
        """Read everything once and compare it with the header.

        Raises
        ------
        InvalidInput
            The file is damaged, or its content disagrees with its header.
        """
        seen = PageSet()
        for page, _line, _kind in self.records():
            seen.add(page)
        check_footprint(self, seen)

    def _place(self, page: NDArray[np.int64]) -> NDArray[np.int64]:
        """Pages of the region for pages of the program."""
        index = np.searchsorted(self._segment_start, page, side="right") - 1
        within = page - self._segment_start[index]
        outside = (index < 0) | (within >= self._segment_pages[index])
        if outside.any():
            raise refusal(
                self.path,
                "segments",
                f"page {int(page[outside][0])}",
                "every page lies in a segment of the header",
                _IMPORT_AGAIN,
            )
        placed: NDArray[np.int64] = within + self._segment_target[index]
        return placed


def open_trace(path: str | os.PathLike[str]) -> TraceFile:
    """Open a trace for replay.

    Raises
    ------
    InvalidInput
        There is no such file, it is cut short, or it is not a trace of this version.
    """
    return TraceFile(path)


def builtin_trace() -> Path:
    """Path of the trace that comes with simvm; ``simvm/data/README.md`` says what it is."""
    return Path(str(files("simvm.data").joinpath(f"sort{SUFFIX}")))


def read_header(path: str | os.PathLike[str]) -> TraceHeader:
    """Read a trace's header, and check it and the layout of the file. Reads no access.

    Raises
    ------
    InvalidInput
        As :func:`open_trace`.
    """
    path = Path(path)
    check_marks(path, "trace", _RULE, _FIX, _IMPORT_AGAIN)
    try:
        with parquet_file(path) as parquet:
            text = (parquet.metadata.metadata or {}).get(METADATA_KEY)
            if text is None or not parquet.schema_arrow.equals(SCHEMA):
                raise refusal(path, "", "a Parquet file of another kind", _RULE, _FIX)
            header = _parse_header(path, text)
            _check_layout(path, parquet.metadata, header)
    except DECODE_ERRORS as error:
        if isinstance(error, InvalidInput):
            raise
        raise _damaged(path, error) from None
    return header


def check_footprint(trace: TraceFile, seen: PageSet) -> None:
    """Compare the pages of the region that were seen with those that the header states.

    Raises
    ------
    InvalidInput
        They differ.
    """
    header = trace.header
    found = (len(seen), seen.block_count)
    stated = (header.distinct_4k_pages, header.distinct_2m_pages)
    if found != stated:
        raise refusal(
            trace.path,
            "distinct_4k_pages, distinct_2m_pages",
            f"{stated[0]}, {stated[1]}",
            f"the file holds {found[0]}, {found[1]}",
            _IMPORT_AGAIN,
        )


_RULE = "must be a memory trace that simvm wrote"
_IMPORT_AGAIN = "import the trace again with `simvm trace import`"
_FIX = "make one from a recording with `simvm trace import`"


def _damaged(path: Path, error: BaseException) -> InvalidInput:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return refusal(path, "", reason, "the trace must be whole, and is damaged", _IMPORT_AGAIN)


def gib_pages(segments: tuple[Segment, ...]) -> int:
    """Distinct 1 GiB pages that the segments, ascending, lie in."""
    pages, last = 0, -1
    for segment in segments:
        first = segment.start >> _GIB_SHIFT
        end = (segment.start + segment.bytes - 1) >> _GIB_SHIFT
        pages += end - max(first - 1, last)
        last = end
    return pages


def _parse_header(path: Path, text: bytes) -> TraceHeader:
    class Version(BaseModel):
        format: str
        version: int

    try:
        stated = Version.model_validate_json(text)
        if stated.format != FORMAT:
            raise refusal(path, "format", stated.format, f"must be {FORMAT}", _FIX)
        if stated.version != VERSION:
            raise refusal(
                path,
                "version",
                str(stated.version),
                f"this simvm reads version {VERSION}",
                "import the recording again with this simvm, or use the one that wrote the trace",
            )
        return TraceHeader.model_validate_json(text)
    except ValidationError as error:
        raise InvalidInput(
            [
                Mistake(
                    file=str(path),
                    key=".".join(map(str, mistake["loc"])),
                    value=repr(mistake["input"])[:80],
                    rule=mistake["msg"],
                    fix=_IMPORT_AGAIN,
                )
                for mistake in error.errors(include_url=False)[:20]
            ]
        ) from None


def _check_layout(path: Path, metadata: pq.FileMetaData, header: TraceHeader) -> None:
    """Counts and sizes that a reader relies on, from the footer alone."""
    mistakes: list[Mistake] = []

    def require(holds: bool, key: str, value: object, rule: str) -> None:
        if not holds:
            mistakes.append(Mistake(str(path), key, str(value), rule, _IMPORT_AGAIN))

    end = -1
    for i, segment in enumerate(header.segments):
        first, size = segment.start, segment.bytes
        aligned = first % _BLOCK_BYTES == 0 and size % _BLOCK_BYTES == 0
        if not (aligned and first > end and first + size <= _ADDRESS_SPACE_BYTES):
            rule = "segments are aligned to 2 MiB, ascending, and do not touch"
            require(False, f"segments.{i}", f"{first} + {size}", rule)
            break
        end = first + size
    blocks = header.region_bytes >> BLOCK_SHIFT
    pages = header.distinct_4k_pages
    require(blocks <= MAX_BLOCKS, "segments", blocks, f"at most {MAX_BLOCKS} blocks of 2 MiB")
    require(
        blocks == header.distinct_2m_pages,
        "distinct_2m_pages",
        header.distinct_2m_pages,
        f"the segments have {blocks}",
    )
    require(
        blocks <= pages <= min(blocks * PAGES_PER_BLOCK, header.accesses),
        "distinct_4k_pages",
        pages,
        "must fit the segments and the accesses",
    )
    gibs = gib_pages(header.segments)
    require(
        header.distinct_1g_pages == gibs,
        "distinct_1g_pages",
        header.distinct_1g_pages,
        f"the segments lie in {gibs}",
    )
    rows = 0
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        rows += group.num_rows
        within = 1 <= group.num_rows <= ROW_GROUP_ACCESSES
        if not (within and 0 <= group.total_byte_size <= 3 * _MAX_COLUMN_BYTES):
            rule = f"a row group holds 1 to {ROW_GROUP_ACCESSES} accesses"
            require(False, f"row group {i}", group.num_rows, rule)
            break
    else:
        require(
            rows == header.accesses == metadata.num_rows,
            "accesses",
            header.accesses,
            f"the file holds {rows}",
        )
    if mistakes:
        raise InvalidInput(mistakes)


def _raw_records(
    path: Path, max_accesses: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint8]]]:
    """The columns as they stand in the file, in pieces of at most `max_accesses`."""
    try:
        with path.open("rb") as raw, parquet_file(path) as parquet:
            for i in range(parquet.metadata.num_row_groups):
                group = parquet.metadata.row_group(i)
                for c in range(group.num_columns):
                    if sum(page_sizes(raw, group.column(c))) > _MAX_COLUMN_BYTES:
                        raise refusal(
                            path,
                            f"row group {i}",
                            "pages that unpack to more",
                            f"at most {_MAX_COLUMN_BYTES} bytes a column",
                            _IMPORT_AGAIN,
                        )
                rows = 0
                for batch in parquet.iter_batches(
                    batch_size=max_accesses, row_groups=[i], use_threads=False
                ):
                    rows += batch.num_rows
                    page, line, kind = (column.to_numpy() for column in batch.columns)
                    yield page, line, kind
                if rows != group.num_rows:
                    raise ValueError(f"row group {i} holds {rows} accesses, not {group.num_rows}")
    except DECODE_ERRORS as error:
        if isinstance(error, InvalidInput):
            raise
        raise _damaged(path, error) from None
