"""Records a timeline: rows in, Parquet out, with memory that does not grow with the run.

Rows collect in typed arrays, one per column. Now and then they are written and dropped, to
a file of their own: a part, which readers find from then on, and which a killed run leaves.
At the end the parts become one file with row groups of a fixed size. So the same rows give
the same bytes, however often they were written before.

Without a path rows stay in memory.

Left out: durability against a power cut.
"""

from __future__ import annotations

import os
import shutil
from array import array
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa

from simvm.child import run_module
from simvm.columns import COUNTER_NAMES, SCOPES, VALUE_NAMES, names_at
from simvm.errors import SimulationFailed
from simvm.merge import merge, writer
from simvm.timeline import PARTIAL_SCHEMA, SCHEMA, part_file, temporary

ROW_GROUP_ROWS: Final = 8192
FLUSH_ROWS: Final = 1024
"""Rows of memory: so many, and those of one sample."""

MERGE_ROWS: Final = 2048
"""More than so many are merged in a process of its own."""

_ALLOWED: Final[dict[str, frozenset[str]]] = {scope: frozenset(names_at(scope)) for scope in SCOPES}


class _Cells:
    """The cells of one column that wait: numbers, and of each whether it is there."""

    def __init__(self, field: pa.Field) -> None:
        self._type = field.type
        self.numbers: array[Any] = array("d" if field.type == pa.float64() else "q")
        self.known = bytearray()

    def take(self) -> pa.Array:
        """The cells as an Arrow array; they wait no longer.

        Made of buffers, since `pyarrow.array` imports pandas to look at what it is given.
        """
        bits = np.packbits(np.frombuffer(bytes(self.known), np.uint8), bitorder="little")
        buffers = [pa.py_buffer(bits), pa.py_buffer(self.numbers.tobytes())]
        made = pa.Array.from_buffers(self._type, len(self.numbers), buffers)
        del self.numbers[:], self.known[:]
        return made


def _texts(cells: list[str]) -> pa.Array:
    coded = [cell.encode() for cell in cells]
    ends = array("i", [0])
    for text in coded:
        ends.append(ends[-1] + len(text))
    return pa.StringArray.from_buffers(
        len(cells), pa.py_buffer(ends), pa.py_buffer(b"".join(coded))
    )


class Recorder:
    """Takes the rows of a timeline in the order of time.

    Parameters
    ----------
    path
        Where the Parquet file goes at :meth:`close`, and its parts until then; None keeps
        the rows in memory.
    thorough
        Also hold that no counter of a scope ever falls.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        thorough: bool = False,
        flush_rows: int = FLUSH_ROWS,
        row_group_rows: int = ROW_GROUP_ROWS,
    ) -> None:
        self._path = path
        self._flush_rows = flush_rows
        self._row_group_rows = row_group_rows
        self._scopes: list[str] = []
        self._classes: list[str] = []
        self._cells = {field.name: _Cells(field) for field in SCHEMA if field.type != pa.string()}
        self._keys = [self._cells[name] for name in ("time_ns", "guest")]
        self._values = [
            (name, self._cells[name].numbers.append, self._cells[name].known.append)
            for name in VALUE_NAMES
        ]
        self._batches: list[pa.Table] = []
        self._parts = 0
        self._time_ns = 0
        self._rows = 0
        self._closed = False
        self._last: dict[tuple[str, str, int], dict[str, int]] | None = {} if thorough else None

    @property
    def rows(self) -> int:
        """Rows taken so far."""
        return self._rows

    @property
    def waiting(self) -> int:
        """Rows taken since the last :meth:`flush`."""
        return len(self._scopes)

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
            this scope, a count is no integer, or (`thorough`) a counter fell.
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
        if time_ns > self._time_ns and self.waiting >= self._flush_rows:
            self.flush()    # between two samples, so that a part holds whole ones
        self._time_ns = time_ns
        self._take(time_ns, guest, values)
        self._scopes.append(scope)
        self._classes.append(class_)
        self._rows += 1

    def flush(self) -> None:
        """Write what waits, so that readers find it; they take the timeline for partial."""
        if not self.waiting:
            return
        batch = self._waiting_rows()
        if self._path is None:
            self._batches.append(batch)
            return
        self._path.mkdir(exist_ok=True)
        part = part_file(self._path, self._parts)
        with writer(temporary(part), PARTIAL_SCHEMA) as file:
            file.write_table(batch.replace_schema_metadata(PARTIAL_SCHEMA.metadata))
        os.replace(temporary(part), part)
        self._parts += 1

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
            self.flush()
            schema = PARTIAL_SCHEMA if partial else SCHEMA
            if not self._batches:
                return schema.empty_table()
            return pa.concat_tables(self._batches).replace_schema_metadata(schema.metadata)
        self.flush()
        if self._rows <= MERGE_ROWS:
            merge(self._path, partial, self._row_group_rows)
        else:
            run_module(
                "simvm.merge", str(self._path.resolve()), "partial" if partial else "whole",
                str(self._row_group_rows),
            )  # fmt: skip
        self._drop_parts(self._path)
        os.replace(temporary(self._path), self._path)
        return None

    def discard(self) -> None:
        """Drop the rows and the unfinished timeline."""
        self._closed = True
        self._batches.clear()
        if self._path is not None:
            self._drop_parts(self._path)
            temporary(self._path).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(partial=kind is not None)

    def _take(self, time_ns: int, guest: int, values: Mapping[str, int | float | None]) -> None:
        for cells, key in zip(self._keys, (time_ns, guest), strict=True):
            cells.numbers.append(key)
            cells.known.append(True)
        get, name = values.get, ""
        try:
            for name, add, know in self._values:
                value = get(name)
                add(0 if value is None else value)
                know(value is not None)
        except TypeError:
            self.discard()
            raise SimulationFailed(f"a float in {name}, which takes integers") from None

    def _waiting_rows(self) -> pa.Table:
        """The rows that wait, which do so no longer."""
        texts = {"scope": _texts(self._scopes), "class": _texts(self._classes)}
        self._scopes, self._classes = [], []
        columns = [
            texts[field.name] if field.name in texts else self._cells[field.name].take()
            for field in SCHEMA
        ]
        return pa.Table.from_arrays(columns, schema=SCHEMA)

    def _drop_parts(self, path: Path) -> None:
        """The parts have had their day."""
        if self._parts:
            aside = path.with_name(f".{path.name}.parts.part")
            os.replace(path, aside)
            shutil.rmtree(aside)

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
