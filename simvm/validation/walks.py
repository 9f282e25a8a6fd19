"""Loads of a walk with every cache off, and the size of the TLB entry that it yields."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from simvm.hardware.formats import FORMATS
from simvm.units import parse_bytes
from simvm.validation.rows import Basis, Published, Row, basis
from simvm.walk import walk

_FORMATS = ("guest_format", "host_format")


def _walk(row: Any) -> dict[str, Any]:
    keys = ("host", "guest_table_host", *_FORMATS, "contiguous")
    question = {key: row[key] for key in keys if key in row}
    levels = row.get("levels")
    if "guest" not in row:
        return walk(guest=None, host_levels=levels, virtualization="none", **question)
    return walk(guest=row["guest"], guest_levels=levels, host_levels=levels, **question)


def _name(row: Any) -> str:
    levels = f", {row['levels']} levels" if "levels" in row else ""
    hint = f", contiguous in {row['contiguous']}" if "contiguous" in row else ""
    formats = f", {row['guest_format']} over {row['host_format']}" if "host_format" in row else ""
    sizes = f"{row['guest']}+{row['host']}" if "guest" in row else f"native {row['host']}"
    tables = f", guest tables in {row['guest_table_host']}" if "guest_table_host" in row else ""
    return f"{sizes}{tables}{levels}{formats}{hint}"


def _basis(row: Any, published: Published) -> Basis:
    """The formats have sources of their own."""
    formats = (FORMATS[row[key]].source for key in _FORMATS if key in row)
    return basis(published, row, source="; ".join(dict.fromkeys(formats)))


def load_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """The number of loads; all sizes are full."""
    for row in published["rows"]:
        loads = _walk(row)["loads"]
        yield Row(f"walk loads, {_name(row)}", row["loads"], loads, _basis(row, published))


def entry_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """Bytes that one TLB entry covers; all sizes are full."""
    for row in published["rows"]:
        entry, expected = parse_bytes(_walk(row)["tlb_entry"]), parse_bytes(row["entry"])
        yield Row(f"TLB entry bytes, {_name(row)}", expected, entry, _basis(row, published))
