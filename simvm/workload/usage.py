"""Usage files: the recorded memory use of a machine over time.

A usage file is a Parquet file with a row for each change: ``time_ns``, ascending, of which the
first row is the beginning; ``used_bytes``, what programs and the kernel of the machine use;
optionally ``cached_bytes``, its page cache, and ``activity``, 0 to 1, the share of its full
speed at which it works. Any tool may write one; :func:`simvm.workload.usage_import.import_usage`
makes one of what monitoring exports, and adds under the key ``simvm.usage`` of the metadata what
it was made of. A row holds until the next; the last one for as long as the one before it.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from simvm.errors import InvalidInput
from simvm.hardware.geometry import PAGE
from simvm.workload.parquet_files import DECODE_ERRORS, check_marks, parquet_file, refusal
from simvm.workload.parquet_pages import page_sizes

SUFFIX: Final = ".usage.parquet"
METADATA_KEY: Final = b"simvm.usage"
FORMAT: Final = "simvm-usage"
VERSION: Final = 1

MAX_ROWS: Final = 1 << 21
"""24 days at a step of a second; twenty years at one of five minutes."""

MAX_BYTES: Final = 1 << 52
MAX_NS: Final = 1 << 60
FULL: Final = 1_000_000
"""Activity is kept in millionths."""

_RULE: Final = "must be a usage file: Parquet with the columns time_ns and used_bytes"
_FIX: Final = "make one with `simvm trace import --usage`"
_MAX_METADATA: Final = 1 << 20
_COLUMNS: Final = ("time_ns", "used_bytes", "cached_bytes", "activity")


@dataclass(frozen=True)
class UsageSeries:
    """A usage file as it stands in memory; times are ns from the first row on."""

    path: Path
    time_ns: NDArray[np.int64]
    used_bytes: NDArray[np.int64]
    cached_bytes: NDArray[np.int64] | None
    activity: NDArray[np.int64] | None
    """In millionths."""
    about: dict[str, Any]
    """What the importer noted; empty for a file of another program."""

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return len(self.time_ns)

    @property
    def span_ns(self) -> int:
        """From the first row to the end of the last one."""
        return 2 * int(self.time_ns[-1]) - int(self.time_ns[-2])

    @property
    def step_ns(self) -> int:
        """The usual time between two rows: the lower median."""
        return usual_step(self.time_ns)


def usual_step(time_ns: NDArray[np.int64]) -> int:
    """The lower median of the times between two rows, in ns."""
    steps = np.diff(time_ns)
    return int(np.partition(steps, (len(steps) - 1) // 2)[(len(steps) - 1) // 2])


def open_usage(path: str | os.PathLike[str]) -> UsageSeries:
    """Read a usage file, all of it; read anew only when the file has changed.

    Raises
    ------
    InvalidInput
        There is no such file, it is damaged, no usage file, too long, or its rows are not in
        order, negative or out of range.
    """
    path = Path(path)
    try:
        state = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise refusal(path, "", reason, "must be a readable file", "correct the path") from None
    return _open(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _open(path: Path, _size: int, _mtime_ns: int) -> UsageSeries:
    check_marks(path, "usage file", _RULE, _FIX, "import it again")
    try:
        columns, about = _read(path)
    except DECODE_ERRORS as error:
        if isinstance(error, InvalidInput):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        rule = "the usage file must be whole, and is damaged"
        raise refusal(path, "", reason, rule, "import it again") from None
    return _checked(path, columns, about)


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    with path.open("rb") as raw, parquet_file(path) as parquet:
        schema, metadata = parquet.schema_arrow, parquet.metadata
        for name in _COLUMNS[:2]:
            if name not in schema.names:
                found = ", ".join(schema.names[:8])
                raise refusal(path, name, f"columns {found}"[:120], _RULE, _FIX)
        if not 2 <= metadata.num_rows <= MAX_ROWS:
            rule = f"a usage file has 2 to {MAX_ROWS:,} rows"
            raise refusal(path, "rows", str(metadata.num_rows), rule, "import it with another step")
        wanted = [name for name in _COLUMNS if name in schema.names]
        for name in wanted:
            kind = schema.field(name).type
            if name == "activity" and not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
                raise refusal(path, name, str(kind), "must be numbers, 0 to 1", _FIX)
            if name != "activity" and not pa.types.is_integer(kind):
                raise refusal(path, name, str(kind), "must be integers", _FIX)
        _check_pages(path, raw, metadata, set(wanted))
        table = parquet.read(columns=wanted, use_threads=False)
        text = (metadata.metadata or {}).get(METADATA_KEY, b"{}")
        about = json.loads(text) if len(text) <= _MAX_METADATA else {}
    columns: dict[str, NDArray[Any]] = {}
    for name in wanted:
        column = table.column(name)
        if column.null_count:
            raise refusal(path, name, f"{column.null_count} nulls", "must have no nulls", _FIX)
        kind = pa.float64() if name == "activity" else pa.int64()
        columns[name] = column.cast(kind).to_numpy()
    if not isinstance(about, dict):
        about = {}
    return columns, {k: v for k, v in about.items() if isinstance(v, str | int)}


def _check_pages(path: Path, raw: Any, metadata: Any, wanted: set[str]) -> None:
    """What the pages of a column unpack to must fit its rows: 8 bytes, and a dictionary's."""
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        for c in range(group.num_columns):
            column = group.column(c)
            most = 24 * group.num_rows + (1 << 16)
            if column.path_in_schema in wanted and sum(page_sizes(raw, column)) > most:
                rule = f"at most {most} bytes a column"
                raise refusal(path, f"row group {i}", "pages that unpack to more", rule, _FIX)


def _checked(
    path: Path, columns: dict[str, NDArray[Any]], about: dict[str, Any]
) -> UsageSeries:
    time = columns["time_ns"]
    backward = np.flatnonzero(time[1:] <= time[:-1])
    if len(backward):
        row = int(backward[0]) + 2
        value = f"{len(backward)} rows, the first of them row {row}"
        raise refusal(path, "time_ns", value, "must ascend from row to row", "sort them by time")
    if int(time[-1]) - int(time[0]) > MAX_NS:
        raise refusal(path, "time_ns", str(time[-1]), "must span 36 years at most", _FIX)
    for name in ("used_bytes", "cached_bytes"):
        if name in columns and (columns[name].min() < 0 or columns[name].max() > MAX_BYTES):
            value = f"{columns[name].min()} to {columns[name].max()}"
            raise refusal(path, name, value, f"must be 0 to {MAX_BYTES} bytes", _FIX)
    activity = columns.get("activity")
    if activity is not None:
        if not ((activity >= 0) & (activity <= 1)).all():  # not-a-number is never inside
            value = f"{activity.min()} to {activity.max()}"
            raise refusal(path, "activity", value, "must be 0 to 1", "divide by the largest")
        activity = np.rint(activity * FULL).astype(np.int64)
    return UsageSeries(
        path, time - time[0], columns["used_bytes"], columns.get("cached_bytes"), activity, about
    )


def describe(series: UsageSeries) -> dict[str, Any]:
    """What a usage file is like, ready for JSON; means are over time."""
    found: dict[str, Any] = {
        "rows": series.rows, "span_ns": series.span_ns, "step_ns": series.step_ns,
    }  # fmt: skip
    held = np.diff(series.time_ns, append=series.span_ns)
    for name in ("used_bytes", "cached_bytes", "activity"):
        values = getattr(series, name)
        if values is None:
            continue
        # The mean over time, in integers that do not overflow.
        mean = sum(int(v) * int(h) for v, h in zip(values, held, strict=True)) // series.span_ns
        least, most = int(values.min()), int(values.max())
        unit = FULL if name == "activity" else 1
        found |= {
            f"{name}_min": least / unit if unit > 1 else least,
            f"{name}_mean": mean / unit if unit > 1 else mean,
            f"{name}_max": most / unit if unit > 1 else most,
        }
    # Nothing that a file says of itself stands for what was counted.
    return series.about | found | {"gaps": len(gaps(series.time_ns))}


def scaled(size: int, scale: float) -> int:
    """Bytes times a factor, rounded down to whole 4 KiB pages."""
    return int(size * scale) // PAGE * PAGE


def gaps(time_ns: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows (from 0) after which more than twice the usual step goes by."""
    return np.flatnonzero(np.diff(time_ns) > 2 * usual_step(time_ns))


def write_usage(
    path: Path, columns: dict[str, NDArray[np.int64]], about: dict[str, Any]
) -> None:
    """Write a usage file beside its final name, and rename it. `activity` in millionths."""
    arrays: dict[str, Any] = {name: pa.array(columns[name]) for name in columns}
    if "activity" in arrays:
        arrays["activity"] = pa.array(columns["activity"] / FULL)
    table = pa.table(arrays)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with pq.ParquetWriter(
            beside, table.schema, compression="zstd", store_schema=False, write_page_checksum=True
        ) as writer:
            writer.write_table(table, row_group_size=1 << 16)
            writer.add_key_value_metadata({METADATA_KEY: json.dumps(about)})
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
