"""Loads of a walk with every cache off, and the size of the TLB entry that it yields."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from simvm.units import parse_bytes
from simvm.validation.rows import EXACT, Published, Row
from simvm.walk import walk


def _walk(row: Any) -> dict[str, Any]:
    levels = row.get("levels", 4)
    guest = row.get("guest")
    if guest is None:
        return walk(guest=None, host=row["host"], host_levels=levels, virtualization="none")
    return walk(guest=guest, host=row["host"], guest_levels=levels, host_levels=levels)


def _name(row: Any) -> str:
    levels = f", {row['levels']} levels" if "levels" in row else ""
    return f"{row['guest']}+{row['host']}{levels}" if "guest" in row else f"native {row['host']}"


def load_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """The number of loads; all sizes are full."""
    for row in published["rows"]:
        target = f"walk loads, {_name(row)}"
        source = published["source"]
        loads = _walk(row)["loads"]
        yield Row(target, row["loads"], loads, EXACT, "absolute", source, "identity")


def entry_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """Bytes that one TLB entry covers; all sizes are full."""
    for row in published["rows"]:
        target = f"TLB entry bytes, {_name(row)}"
        entry = parse_bytes(_walk(row)["tlb_entry"])
        source = published["source"]
        yield Row(
            target, parse_bytes(row["entry"]), entry, EXACT, "absolute", source, "identity"
        )
