"""Loads of a walk with every cache off, and the size of the TLB entry that it yields."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from simvm.hardware.formats import FORMATS
from simvm.units import parse_bytes
from simvm.validation.rows import EXACT, Published, Row
from simvm.walk import walk

_FORMATS = ("guest_format", "host_format")


def _walk(row: Any) -> dict[str, Any]:
    question = {key: row[key] for key in ("host", *_FORMATS, "contiguous") if key in row}
    levels = row.get("levels")
    if "guest" not in row:
        return walk(guest=None, host_levels=levels, virtualization="none", **question)
    return walk(guest=row["guest"], guest_levels=levels, host_levels=levels, **question)


def _name(row: Any) -> str:
    levels = f", {row['levels']} levels" if "levels" in row else ""
    hint = f", contiguous in {row['contiguous']}" if "contiguous" in row else ""
    formats = f", {row['guest_format']} over {row['host_format']}" if "host_format" in row else ""
    sizes = f"{row['guest']}+{row['host']}" if "guest" in row else f"native {row['host']}"
    return f"{sizes}{levels}{formats}{hint}"


def _source(row: Any, published: Published) -> str:
    """Of the formula, and of the formats."""
    formats = (FORMATS[row[key]].source for key in _FORMATS if key in row)
    return "; ".join(dict.fromkeys((published["source"], *formats)))


def load_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """The number of loads; all sizes are full."""
    for row in published["rows"]:
        target, source = f"walk loads, {_name(row)}", _source(row, published)
        loads = _walk(row)["loads"]
        yield Row(target, row["loads"], loads, EXACT, "absolute", source, "identity")


def entry_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """Bytes that one TLB entry covers; all sizes are full."""
    for row in published["rows"]:
        target, source = f"TLB entry bytes, {_name(row)}", _source(row, published)
        entry = parse_bytes(_walk(row)["tlb_entry"])
        yield Row(target, parse_bytes(row["entry"]), entry, EXACT, "absolute", source, "identity")
