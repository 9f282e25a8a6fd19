"""From what monitoring exports to a usage file: `simvm trace import --usage`.

One pass. Nothing is guessed: times that go back or come twice, gaps, and rows that say nothing
are reported with the numbers of their lines, and are errors unless an option says what to do.
"""

from __future__ import annotations

import os
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from simvm.errors import InvalidInput, Mistake
from simvm.units import human_ns
from simvm.workload.parquet_files import DECODE_ERRORS, MAGIC, check_marks, parquet_file, refusal
from simvm.workload.parquet_pages import page_sizes
from simvm.workload.usage import (
    FORMAT,
    MAX_ROWS,
    SUFFIX,
    VERSION,
    UsageSeries,
    describe,
    gaps,
    open_usage,
    usual_step,
    write_usage,
)
from simvm.workload.usage_formats import (
    LIBVIRT_NAMES,
    RECORD_LINE,
    Columns,
    Exposition,
    Found,
    Records,
    Row,
    Unfit,
)
from simvm.workload.usage_text import UNITS, Bad, BadValue, Lines, Times, bad

KINDS: Final = ("auto", "csv", "parquet", "node_exporter", "libvirt")
TIMES: Final = ("auto", *UNITS)

_HEAD_LINES: Final = 200
_SHOWN: Final = 5
_HOPELESS: Final = 1000

Reader = Columns | Exposition | Records
Progress = Callable[[int, int], None]
"""Called now and then with the bytes read and the rows kept so far."""


@dataclass
class _Found:
    """How often something was wrong, and the first places."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        self.count += 1
        if len(self.places) < _SHOWN:
            self.places.append(place)

    def said(self, what: str) -> str:
        more = ", ..." if self.count > len(self.places) else ""
        return f"{self.count} {what}: " + ", ".join(self.places) + more


class _Collector:
    """The rows that are kept, and what was wrong."""

    def __init__(self, gaps: str, duplicates: str) -> None:
        self._hold = gaps == "hold"
        self._duplicates = duplicates
        self.time, self.used = array("q"), array("q")
        self.cached, self.activity = array("q"), array("q")
        self.line = array("q")
        self.bad, self.missing, self.back, self.twice = (_Found() for _ in range(4))
        self.dropped: Counter[str] = Counter()

    def add(self, row: Row | Bad) -> None:
        """Keep a row, or note why not."""
        if isinstance(row, Bad):
            text = f" {row.text!r}" if row.text else ""
            self.bad.add(f"line {row.line}:{text}: {row.reason}")
        elif row.used is None:
            if self._hold:
                self.dropped["rows_without_a_value"] += 1
            else:
                self.missing.add(f"line {row.line}")
        elif self.time and row.time_ns < self.time[-1]:
            self.back.add(f"line {row.line}")
        elif self.time and row.time_ns == self.time[-1]:
            if self._duplicates == "error":
                self.twice.add(f"line {row.line}")
                return
            self.dropped["rows_of_the_same_time"] += 1
            if self._duplicates == "last":
                for column in (self.time, self.used, self.cached, self.activity, self.line):
                    if column:
                        column.pop()
                self._keep(row)
        else:
            self._keep(row)

    def _keep(self, row: Row) -> None:
        assert row.used is not None
        self.line.append(row.line)
        self.time.append(row.time_ns)
        self.used.append(row.used)
        if row.cached is not None:
            self.cached.append(row.cached)
        if row.activity is not None:
            self.activity.append(row.activity)

    @property
    def hopeless(self) -> bool:
        """Whether this is plainly no such file, and need not be read to its end."""
        return self.wrong > max(_HOPELESS, len(self.time))

    @property
    def wrong(self) -> int:
        """Rows that are not kept, and should be."""
        return self.bad.count + self.missing.count + self.back.count + self.twice.count

    def mistakes(self, file: str) -> Iterator[Mistake]:
        """What is wrong, all of it."""
        if self.hopeless:
            line = self.line[-1] if self.line else 0
            yield Mistake(file, "lines", "more of them are wrong than are not",
                          "an export of memory use; not all of it was read",
                          f"look at what follows line {line}")  # fmt: skip
        if self.bad.count:
            yield Mistake(file, "lines", self.bad.said("say nothing"),
                          "each line must be a row", "correct or remove them")  # fmt: skip
        if self.missing.count:
            yield Mistake(file, "lines", self.missing.said("without a value"),
                          "each row must have its values",
                          "--gaps hold lets the last value hold on")  # fmt: skip
        if self.back.count:
            yield Mistake(file, "time", self.back.said("rows go back in time"),
                          "times must ascend: a clock was set back, or rows are not in order",
                          "sort the rows by time, or cut the file where the clock was set back",
                          )  # fmt: skip
        if self.twice.count:
            yield Mistake(file, "time", self.twice.said("rows have the time of the one before"),
                          "times must ascend", "--duplicates first or last keeps one of them",
                          )  # fmt: skip
        if not self.wrong and len(self.time) < 2:
            yield Mistake(file, "rows", str(len(self.time)), "a series has two rows or more",
                          "export more of it")  # fmt: skip
        elif not (self._hold or self.back.count or self.twice.count or len(self.time) < 2):
            yield from self._gaps(file)

    def _gaps(self, file: str) -> Iterator[Mistake]:
        times = np.array(self.time)
        found = gaps(times)
        if len(found):
            seen = _Found()
            for at in found.tolist():
                seen.add(f"{human_ns(int(times[at + 1] - times[at]))} before line "
                         f"{self.line[at + 1]}")  # fmt: skip
            rule = f"no more than twice the usual step, {human_ns(usual_step(times))}, may go by"
            fix = "--gaps hold lets the last value hold on"
            yield Mistake(file, "time", seen.said("gaps"), rule, fix)


def import_usage(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    kind: str = "auto",
    time: str = "auto",
    gaps: Literal["error", "hold"] = "error",
    duplicates: Literal["error", "first", "last"] = "error",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Read an export of memory use and write a usage file.

    Parameters
    ----------
    source
        The export; ``-`` is standard input, which cannot be Parquet.
    out
        A folder, made if there is none, or a file with the suffix ``.parquet``.
    kind
        One of :data:`KINDS`; by default by what the file looks like.
    time
        Unit of times that are numbers, one of :data:`TIMES`; by default by the format, else by
        the size of the first one.
    gaps
        What to do where more than twice the usual step goes by, or a row has no value: refuse,
        or let the last value hold on.
    duplicates
        Which of several rows of one time to keep.

    Returns
    -------
    dict
        What was read and how, and what the series is like; ``path`` is where it is.

    Raises
    ------
    InvalidInput
        The source cannot be read, is of no known format, or has mistakes, all of them at once;
        or `out` cannot be written.
    """
    name = str(source)
    for key, value, known in (("kind", kind, KINDS), ("time", time, TIMES)):
        if value not in known:
            raise refusal(name, key, value, f"one of {', '.join(known)}", "name one of these")
    collector = _Collector(gaps, duplicates)
    try:
        said = _read(source, kind, None if time == "auto" else time, collector, progress)
    except Unfit as error:
        key, value, rule, fix = error.args
        raise refusal(name, key, value, rule, fix) from None
    mistakes = list(collector.mistakes(name))
    if mistakes:
        raise InvalidInput(mistakes)
    columns = _columns(collector)
    about = {
        "format": FORMAT, "version": VERSION, **said, "began": _began(collector.time[0]),
        **collector.dropped,
    }  # fmt: skip
    path = _target(source, Path(out))
    try:
        write_usage(path, columns, about)
    except OSError as error:
        reason = error.strerror or str(error)
        raise refusal(path, "", reason, "must be writable", "choose another with --out") from None
    return {**describe(open_usage(path)), "path": str(path)}


def usage_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a usage file is like; InvalidInput as `open_usage`."""
    series: UsageSeries = open_usage(path)
    return describe(series) | {"file_bytes": Path(path).stat().st_size}


def is_usage(path: str | os.PathLike[str]) -> bool:
    """Whether a file is Parquet with the columns of a usage file, rather than a trace."""
    try:
        with Path(path).open("rb") as file:
            if file.read(4) != MAGIC:
                return False
        with parquet_file(Path(path)) as parquet:
            return {"time_ns", "used_bytes"} <= set(parquet.schema_arrow.names)
    except DECODE_ERRORS:
        return False


def _began(first: int) -> str | None:
    """When a series that knows the time of day began."""
    if first < 10**17:
        return None
    return datetime.fromtimestamp(first // 10**9, UTC).isoformat()


def _target(source: str | os.PathLike[str], out: Path) -> Path:
    if out.suffix == ".parquet" and not out.is_dir():
        return out
    stem = "usage" if str(source) == "-" else Path(source).name.split(".")[0] or "usage"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise refusal(out, "", reason, "must be a folder", "choose another with --out") from None
    return out / f"{stem}{SUFFIX}"


def _columns(collector: _Collector) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    columns = {"time_ns": np.array(collector.time), "used_bytes": np.array(collector.used)}
    columns["time_ns"] = columns["time_ns"] - columns["time_ns"][0]
    for name, values in (("cached_bytes", collector.cached), ("activity", collector.activity)):
        if len(values) == len(collector.time):
            columns[name] = np.array(values)
    return columns


# --- reading ----------------------------------------------------------------------------


def _read(
    source: str | os.PathLike[str], kind: str, unit: str | None, collector: _Collector,
    progress: Progress | None,
) -> dict[str, Any]:
    """Read all rows into the collector; what was read, and how."""
    with ExitStack() as stack:
        stream: BinaryIO = sys.stdin.buffer
        if str(source) != "-":
            try:
                stream = stack.enter_context(Path(source).open("rb"))
                head = stream.read(len(MAGIC))
                stream.seek(0)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise refusal(
                    source, "", reason, "must be a readable file", "correct the path"
                ) from None
            if kind == "parquet" or (kind == "auto" and head == MAGIC):
                return _parquet(Path(source), unit, collector)
        lines = Lines(str(source), stream)
        numbered = iter(lines)
        start = list(islice(numbered, _HEAD_LINES))
        reader, skip = _reader(kind, start, Times(unit) if unit else None)
        _take(reader.rows(chain(start[skip:], numbered)), collector, lines, progress)
        times = reader.times
    left = {"left_out": reader.left_out} if reader.left_out else {}
    return {"kind": reader.kind, "taken": reader.said, "time": times.said, **left}


def _take(
    rows: Found, collector: _Collector, lines: Lines, progress: Progress | None
) -> None:
    for count, row in enumerate(rows):
        collector.add(row)
        if collector.hopeless:
            return
        if len(collector.time) > MAX_ROWS:
            fix = "export it with a longer step"
            raise Unfit("rows", f"more than {MAX_ROWS:,}", f"at most {MAX_ROWS:,} rows", fix)
        if progress is not None and count % 10_000 == 0:
            progress(lines.bytes_read, len(collector.time))


def _reader(
    kind: str, start: list[tuple[int, str]], times: Times | None
) -> tuple[Reader, int]:
    """A reader of the format, and how many lines are its heading."""
    told = [(at, text) for at, (_, text) in enumerate(start) if text.strip()]
    plain = [(at, text) for at, text in told if not text.startswith("#")]
    if not plain:
        raise Unfit("lines", "empty", "must have rows", "export them again")
    looks = _looks_like([text for _, text in plain])
    if kind not in ("auto", "parquet"):
        table = looks == "csv"  # node_exporter and libvirt come as columns as well
        looks = "csv" if table and kind != "csv" else kind
    if looks == "node_exporter":
        return Exposition(times), 0
    if looks == "libvirt":
        return Records(times), 0
    at, first = plain[0]
    try:
        columns = Columns(first, times)
    except BadValue as error:
        raise Unfit("line 1", first[:60], str(error), "correct the line of names") from None
    if kind in ("node_exporter", "libvirt") and columns.kind != kind:
        raise Unfit("kind", kind, f"looks like {columns.kind}", f"write --kind {columns.kind}")
    return columns, at + 1 if columns.headed else 0


def _looks_like(texts: list[str]) -> str:
    """A format, by its first lines: those of other metrics may come before node_exporter's."""
    for text in texts:
        if text.startswith("node_memory_") and len(text.split()) in (2, 3):
            return "node_exporter"
        found = RECORD_LINE.fullmatch(text)
        if text.startswith("Domain:") or (
            found is not None and found[1].replace("-", "_") in LIBVIRT_NAMES
        ):
            return "libvirt"
    return "csv"


def _parquet(path: Path, unit: str | None, collector: _Collector) -> dict[str, Any]:
    """Columns of a Parquet file under the names that CSV has too; rows are numbered as lines."""
    rule, fix = "must be a Parquet file", "export it again"
    check_marks(path, "file", rule, fix, fix)
    try:
        with path.open("rb") as raw, parquet_file(path) as parquet:
            names = parquet.schema_arrow.names
            if parquet.metadata.num_rows > MAX_ROWS:
                raise Unfit("rows", str(parquet.metadata.num_rows), f"at most {MAX_ROWS:,} rows",
                            "export it with a longer step")  # fmt: skip
            columns = Columns(",".join(names), Times(unit) if unit else None)
            _check_pages(path, raw, parquet.metadata)
            line = 0
            for batch in parquet.iter_batches(1 << 16, use_threads=False):
                for values in zip(*(_texts(c) for c in batch.columns), strict=True):
                    line += 1
                    collector.add(_row(columns, line, ",".join(values)))
                if collector.hopeless:
                    break
    except DECODE_ERRORS as error:
        if isinstance(error, InvalidInput):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise refusal(path, "", reason, "the file must be whole, and is damaged", fix) from None
    left = {"left_out": columns.left_out} if columns.left_out else {}
    return {"kind": "parquet", "taken": columns.said, "time": columns.times.said, **left}


def _row(columns: Columns, line: int, text: str) -> Row | Bad:
    for row in columns.rows([(line, text)]):
        return row
    return bad(line, text, "an empty row")


def _texts(column: pa.Array) -> list[str]:
    """A column as text, as CSV would have it; what is no number and no time comes out empty."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        utc = column.cast(pa.timestamp("us", tz=kind.tz), safe=False)
        return ["" if value is None else value.isoformat() for value in utc.to_pylist()]
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return ["" if value is None else str(value) for value in column.to_pylist()]
    return [""] * len(column)


def _check_pages(path: Path, raw: BinaryIO, metadata: pq.FileMetaData) -> None:
    """What the pages of a column unpack to, before a library unpacks them."""
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        for c in range(group.num_columns):
            if sum(page_sizes(raw, group.column(c))) > 64 * group.num_rows + (1 << 20):
                raise refusal(path, f"row group {i}", "pages that unpack to more than their rows",
                              "must be a series of numbers", "export it again")  # fmt: skip


