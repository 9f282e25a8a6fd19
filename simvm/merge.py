"""Makes one file of the parts of a timeline.

    python -m simvm.merge TIMELINE whole|partial ROWS

A row group is in memory with all its columns while it is written, and what the end of the
file says of each group until all are. A process of its own lets neither be a run's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from simvm.columns import KEY_NAMES
from simvm.timeline import PARTIAL_SCHEMA, SCHEMA, part_files, read_groups, temporary


def writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Without what takes memory and gains little: dictionaries and statistics of counters."""
    return pq.ParquetWriter(
        path, schema, compression="zstd", compression_level=3,
        use_dictionary=["scope", "class"], write_statistics=list(KEY_NAMES),
    )  # fmt: skip


def merge(path: Path, partial: bool, rows: int) -> None:
    """Write the rows of the parts in `path` to `temporary(path)`, in row groups of `rows`."""
    schema = PARTIAL_SCHEMA if partial else SCHEMA
    with writer(temporary(path), schema) as whole:
        for group in _row_groups(path, rows):
            whole.write_table(group.replace_schema_metadata(schema.metadata), rows)


def _row_groups(path: Path, rows: int) -> Iterator[pa.Table]:
    """All rows, so many at a time, each time in one piece: bytes depend on the rows alone."""
    held: list[pa.Table] = []
    for part in part_files(path):
        for table in read_groups(part):
            held.append(table)
            while sum(piece.num_rows for piece in held) >= rows:
                together = pa.concat_tables(held)
                yield together.slice(0, rows).combine_chunks()
                held = [together.slice(rows)]
    if any(piece.num_rows for piece in held):
        yield pa.concat_tables(held).combine_chunks()


if __name__ == "__main__":
    merge(Path(sys.argv[1]), sys.argv[2] == "partial", int(sys.argv[3]))
    print("null")
