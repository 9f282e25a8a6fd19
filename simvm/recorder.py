"""Records a timeline: rows in, Parquet out, with bounded memory.

Rows collect in plain lists, one per column, and leave as a row group of fixed size,
so a long run holds no more than one group. The same rows give the same bytes: row
groups, compression and metadata depend on nothing else. The file grows under a
temporary name and takes its own at the end, so a reader never sees half of one.

Left out: durability against a power cut, and a readable file after SIGKILL (the
footer of a Parquet file is written last).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pyarrow as pa
import pyarrow.parquet as pq

from simvm.columns import (
    COLUMNS,
    COUNTER_NAMES,
    KEY_NAMES,
    SCOPES,
    VALUE_NAMES,
    Column,
    names_at,
)
from simvm.errors import SimulationFailed

ROW_GROUP_ROWS: Final = 8192
TIMELINE_VERSION: Final = 1
TIMELINE_FILE: Final = "timeline.parquet"

_VERSION_KEY: Final = b"simvm.timeline_version"
_PARTIAL_KEY: Final = b"simvm.partial"
_ALLOWED: Final[dict[str, frozenset[str]]] = {scope: frozenset(names_at(scope)) for scope in SCOPES}


def _field(column: Column) -> pa.Field:
    is_key = column.kind == "key"
    kind = pa.float64() if column.kind == "ratio" else pa.int64()
    if is_key and not column.unit:
        kind = pa.string()
    return pa.field(column.name, kind, nullable=not is_key)


SCHEMA: Final[pa.Schema] = pa.schema(
    [_field(column) for column in COLUMNS],
    metadata={_VERSION_KEY: str(TIMELINE_VERSION).encode()},
)
"""The Arrow schema of a timeline: int64, but for text keys and float64 ratios."""


def timeline_version(schema: pa.Schema) -> int | None:
    """The timeline version that a file's schema states, or None if it is not a timeline."""
    stated = (schema.metadata or {}).get(_VERSION_KEY, b"")
    return int(stated) if stated.isdigit() else None


class Recorder:
    """Takes the rows of a timeline in the order of time.

    Parameters
    ----------
    path
        Where the Parquet file goes at :meth:`close`; None keeps the rows in memory.
    thorough
        Also hold that no counter of a scope ever falls.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        thorough: bool = False,
        row_group_rows: int = ROW_GROUP_ROWS,
    ) -> None:
        self._path = path
        self._row_group_rows = row_group_rows
        self._columns: list[list[object]] = [[] for _ in COLUMNS]
        self._values = list(zip(VALUE_NAMES, self._columns[len(KEY_NAMES) :], strict=True))
        self._batches: list[pa.RecordBatch] = []
        self._writer: pq.ParquetWriter | None = None
        self._time_ns = 0
        self._rows = 0
        self._closed = False
        self._last: dict[tuple[str, str, int], dict[str, int]] | None = {} if thorough else None

    @property
    def rows(self) -> int:
        """Rows taken so far."""
        return self._rows

    def append(
        self,
        time_ns: int,
        scope: str,
        class_: str,
        guest: int,
        values: Mapping[str, int | float | None],
    ) -> None:
        """Take one row; a column that `values` leaves out is null in it.

        Raises
        ------
        SimulationFailed
            Time ran back, the scope or a column is unknown, a column means nothing at
            this scope, or (`thorough`) a counter fell.
        """
        if self._closed:
            raise SimulationFailed("the timeline is closed")
        if time_ns < self._time_ns:
            raise SimulationFailed(f"time ran back from {self._time_ns} ns to {time_ns} ns")
        allowed = _ALLOWED.get(scope)
        if allowed is None:
            raise SimulationFailed(f"scope {scope!r} is none of {', '.join(SCOPES)}")
        if not values.keys() <= allowed:
            wrong = ", ".join(sorted(values.keys() - allowed))
            raise SimulationFailed(f"no such column at scope {scope}: {wrong}")
        if self._last is not None:
            self._hold_counters(self._last, (scope, class_, guest), values)
        self._time_ns = time_ns
        times, scopes, classes, guests = self._columns[: len(KEY_NAMES)]
        times.append(time_ns)
        scopes.append(scope)
        classes.append(class_)
        guests.append(guest)
        get = values.get
        for name, cells in self._values:
            cells.append(get(name))
        self._rows += 1
        if len(times) >= self._row_group_rows:
            self._flush()

    def close(self, partial: bool = False) -> pa.Table | None:
        """Finish the timeline; the second call does nothing and returns None.

        Parameters
        ----------
        partial
            The run was cut short; the file says so in its metadata.

        Returns
        -------
        The rows as a table when they were kept in memory, else None.
        """
        if self._closed:
            return None
        self._closed = True
        if self._path is None:
            self._flush()
            return pa.Table.from_batches(self._batches, schema=_marked(partial))
        if self._columns[0]:
            self._flush()
        writer = self._open()
        if partial:
            writer.add_key_value_metadata({_PARTIAL_KEY.decode(): "true"})
        writer.close()
        os.replace(self._temporary(self._path), self._path)
        return None

    def discard(self) -> None:
        """Drop the rows and the unfinished file."""
        self._closed = True
        self._batches.clear()
        if self._writer is not None and self._path is not None:
            self._writer.close()
            self._temporary(self._path).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(partial=kind is not None)

    def _flush(self) -> None:
        for cells, field in zip(self._columns, SCHEMA, strict=True):
            # Arrow would cut a float's fraction off without a word.
            if field.type == pa.int64() and float in set(map(type, cells)):
                raise SimulationFailed(f"a float in {field.name}, which takes integers")
        batch = pa.RecordBatch.from_arrays(
            [
                pa.array(cells, type=field.type)
                for cells, field in zip(self._columns, SCHEMA, strict=True)
            ],
            schema=SCHEMA,
        )
        for cells in self._columns:
            cells.clear()
        if self._path is None:
            self._batches.append(batch)
        else:
            self._open().write_batch(batch, row_group_size=self._row_group_rows)

    def _open(self) -> pq.ParquetWriter:
        if self._writer is None:
            assert self._path is not None
            self._writer = pq.ParquetWriter(
                self._temporary(self._path), SCHEMA, compression="zstd", compression_level=3
            )
        return self._writer

    @staticmethod
    def _temporary(path: Path) -> Path:
        return path.with_name(f".{path.name}.part")

    @staticmethod
    def _hold_counters(
        last: dict[tuple[str, str, int], dict[str, int]],
        key: tuple[str, str, int],
        values: Mapping[str, int | float | None],
    ) -> None:
        before = last.setdefault(key, {})
        for name in COUNTER_NAMES:
            value = values.get(name)
            if value is None:
                continue
            was = before.get(name, 0)
            if value < was:
                raise SimulationFailed(f"{name} of {key} fell from {was} to {value}")
            before[name] = int(value)


def _marked(partial: bool) -> pa.Schema:
    if not partial:
        return SCHEMA
    return SCHEMA.with_metadata({**SCHEMA.metadata, _PARTIAL_KEY: b"true"})
