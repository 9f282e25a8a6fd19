"""Timelines: the schema of their rows, where they lie, and how they are read.

A whole timeline is one Parquet file. That of a run that goes on, or was killed, is a
directory of the same name: a Parquet file for each time that rows were written, in order,
each finished before it took its name. Readers of Parquet take either.

A stored timeline is read a row group at a time, and of that the columns that are asked for:
the rows of one guest of a long run do not need the memory of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from simvm.columns import CLASS, COLUMN, COLUMNS, GUEST, HOST, KEY_NAMES, Column
from simvm.errors import ResultError

if TYPE_CHECKING:
    import pandas as pd

TIMELINE_VERSION: Final = 1
TIMELINE_FILE: Final = "timeline.parquet"

_VERSION_KEY: Final = b"simvm.timeline_version"
_PARTIAL: Final = {b"simvm.partial": b"true"}
_WHOSE: Final = KEY_NAMES[1:]


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

PARTIAL_SCHEMA: Final[pa.Schema] = SCHEMA.with_metadata({**SCHEMA.metadata, **_PARTIAL})
"""The same of a run that was cut short, or is not at its end."""


def timeline_version(schema: pa.Schema) -> int | None:
    """The timeline version that a file's schema states, or None if it is not a timeline."""
    stated = (schema.metadata or {}).get(_VERSION_KEY, b"")
    return int(stated) if stated.isdigit() else None


def is_partial(schema: pa.Schema) -> bool:
    """Whether a file's schema says that the timeline is not whole."""
    return _PARTIAL.items() <= (schema.metadata or {}).items()


# --- where it lies ----------------------------------------------------------------------


def temporary(path: Path) -> Path:
    """Where a file is written before it takes its name: hidden, so readers pass it over."""
    return path.with_name(f".{path.name}.part")


def is_temporary(name: str) -> bool:
    """Whether a file's name is one that `temporary` gives."""
    return name.startswith(".") and name.endswith(".part")


def part_file(path: Path, number: int) -> Path:
    """The file of the rows that were written by themselves, counted from 0."""
    return path / f"part-{number:06}.parquet"


def part_files(path: Path) -> list[Path]:
    """The parts of a timeline that is not finished, in order; none of one that is."""
    return sorted(path.glob("part-??????.parquet"))


def files_of(path: Path) -> list[Path]:
    """The files that hold a timeline's rows, in order."""
    if path.is_dir():
        return part_files(path)
    # A run that was killed just as the whole file was to replace the parts has that alone.
    return [path if path.exists() or not temporary(path).exists() else temporary(path)]


def read_groups(file: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The row groups of a Parquet file, one after the other."""
    with pq.ParquetFile(file) as opened:
        for group in range(opened.num_row_groups):
            yield opened.read_row_group(group, columns=columns, use_threads=False)


# --- reading ----------------------------------------------------------------------------


class _Rows(Protocol):
    """Where a timeline's rows come from."""

    schema: pa.Schema

    def count(self) -> int: ...

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows in pieces, with some columns or all."""
        ...


class _Held:
    """Rows in memory."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.schema = table.schema

    def count(self) -> int:
        return int(self._table.num_rows)

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        yield self._table if columns is None else self._table.select(list(columns))


class _Stored:
    """Rows in files."""

    def __init__(self, files: Sequence[Path], schema: pa.Schema) -> None:
        self._files = files
        self.schema = schema

    def count(self) -> int:
        return sum(int(pq.read_metadata(file).num_rows) for file in self._files)

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        for file in self._files:
            yield from read_groups(file, columns)


class Timeline:
    """The samples of a run, or those of one host, class or guest of it."""

    def __init__(self, table: pa.Table) -> None:
        self._rows: _Rows = _Held(table)

    @classmethod
    def read(cls, path: Path) -> Timeline:
        """The timeline in a Parquet file, or in the parts of one that is not finished.

        Raises
        ------
        ResultError
            The file is missing, broken, no timeline, or one of another version.
        """
        files = files_of(path)
        if not files:
            raise ResultError(f"{path} cannot be read: it has no parts yet")
        try:
            rows = _Stored(files, pq.read_schema(files[0]))
        except (OSError, pa.ArrowInvalid) as error:
            raise ResultError(f"{path} cannot be read: {error}") from None
        version = timeline_version(rows.schema)
        if version != TIMELINE_VERSION:
            raise ResultError(f"{path}: timeline version is {version}, must be {TIMELINE_VERSION}")
        return cls._of(rows)

    @classmethod
    def written(cls, path: Path, partial: bool) -> Timeline:
        """What this program has just written, of which nothing is read yet."""
        return cls._of(_Stored([path], PARTIAL_SCHEMA if partial else SCHEMA))

    @classmethod
    def _of(cls, rows: _Rows) -> Timeline:
        found = cls.__new__(cls)
        found._rows = rows
        return found

    def __len__(self) -> int:
        return self._rows.count()

    @property
    def partial(self) -> bool:
        """Whether the run was cut short, or is not at its end."""
        return is_partial(self._rows.schema)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._rows.schema.names)

    def to_arrow(self) -> pa.Table:
        """The rows as an Arrow table, all of them in memory: some 1.2 KB a row."""
        return self._gather(self._rows.tables())

    def to_pandas(self) -> pd.DataFrame:
        """The rows as a pandas frame; a counter with nulls becomes a nullable integer.

        Raises
        ------
        ImportError
            pandas is not installed; ``to_arrow`` needs none.
        """
        try:
            import pandas as pd
        except ImportError:
            raise ImportError(
                "to_pandas needs pandas, which is not installed: pip install pandas, "
                "or use to_arrow()"
            ) from None
        table = self.to_arrow()
        frame: pd.DataFrame = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
        return frame.astype({"time_ns": "int64", "guest": "int64"})

    def host(self) -> Timeline:
        """The rows of the host."""
        return self._where(HOST, "", -1)

    def guest_class(self, name: str) -> Timeline:
        """The rows of a class of guests, each the sum over its guests."""
        return self._where(CLASS, name, -1)

    def guest(self, class_: str, index: int) -> Timeline:
        """The rows of one guest."""
        return self._where(GUEST, class_, index)

    def guests(self) -> list[tuple[str, int]]:
        """Class and number of every guest, in order of appearance."""
        found: dict[tuple[str, int], None] = {}
        for table in self._rows.tables(_WHOSE):
            columns = [table[name].to_pylist() for name in _WHOSE]
            for scope, class_, guest in zip(*columns, strict=True):
                if scope == GUEST:
                    found[class_, guest] = None
        return list(found)

    def values(self, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """One column as floats, null as not-a-number (exact up to 2^53).

        Raises
        ------
        KeyError
            There is no such column.
        """
        if name not in COLUMN:
            raise KeyError(name)
        column = self._gather(self._rows.tables([name]))[name]
        floats: np.ndarray[Any, np.dtype[np.float64]] = (
            column.cast(pa.float64(), safe=False).to_numpy()
        )
        return floats

    def _gather(self, tables: Iterator[pa.Table]) -> pa.Table:
        """Pieces as one table."""
        pieces = list(tables)
        if not pieces:
            return self._rows.schema.empty_table()
        return pa.concat_tables(pieces).replace_schema_metadata(self._rows.schema.metadata)

    def _where(self, scope: str, class_: str, guest: int) -> Timeline:
        import pyarrow.compute as pc

        pieces, seen = [], False
        for table in self._rows.tables():
            mask = pc.and_(
                pc.equal(table["scope"], scope),
                pc.and_(pc.equal(table["class"], class_), pc.equal(table["guest"], guest)),
            )
            seen = seen or table.num_rows > 0
            pieces.append(table.filter(mask))
        found = self._gather(iter(pieces))
        if found.num_rows == 0 and seen:
            what = scope if scope == HOST else f"{scope} {class_}"
            raise KeyError(f"{what}.{guest}" if scope == GUEST else what)
        return Timeline(found)
