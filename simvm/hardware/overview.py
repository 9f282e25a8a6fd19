"""The shipped CPUs side by side: one row of facts for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from simvm.hardware.geometry import ENTRY_NAMES, ENTRY_SHIFTS, TlbArray
from simvm.hardware.load import Cpu, load_cpu, names

HEADS: Final = ("name", "part", "GHz", "L1 TLB", "L2 TLB", "walkers", "levels")


def overview() -> list[dict[str, Any]]:
    """Facts of every shipped CPU; a TLB is a list of its arrays, each in words."""
    return [_facts(load_cpu(name)) for name in names()]


def row(facts: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a table of few columns says of a CPU: one value for each of `HEADS`."""
    l1 = [*facts["l1_load"], *(f"{array} stores" for array in facts["l1_store"])]
    l2 = [*facts["l2"], *(["1GiB as 2MiB"] if facts["smash"] else [])]
    return (
        facts["name"], facts["part"].replace(" (", "\n("), facts["frequency_khz"] / 1e6,
        "\n".join(l1).replace("iB", ""), "\n".join(l2).replace("iB", ""),
        facts["walkers"],
        f"{facts['guest_levels']}+{facts['host_levels']}",
    )  # fmt: skip


def _facts(cpu: Cpu) -> dict[str, Any]:
    geometry = cpu.geometry
    return {
        "name": cpu.name,
        "part": cpu.part,
        "frequency_khz": cpu.frequency_khz,
        "style": geometry.style,
        "l1_load": _arrays(geometry.l1_load),
        "l1_store": _arrays(geometry.l1_store or ()),
        "l2": _arrays(geometry.l2),
        "l2_penalty_cycles": geometry.l2_penalty,
        "smash": geometry.smash,
        "walkers": geometry.walkers,
        "guest_levels": cpu.guest_tables.levels,
        "host_levels": cpu.host_tables.levels,
        "host_root_bits": cpu.host_tables.root_bits,
        "contiguous": cpu.contiguous,
        "tagging": cpu.tagging,
        "cache_l2_bytes": geometry.cache_l2.bytes,
        "cache_llc_bytes": geometry.cache_llc.bytes,
    }


def _arrays(arrays: tuple[TlbArray, ...]) -> list[str]:
    """Each array as the sizes of page it holds, then entries/ways."""
    found = []
    for array in arrays:
        by_size = sorted(array.orders, key=ENTRY_SHIFTS.__getitem__)
        sizes = "+".join(ENTRY_NAMES[order] for order in by_size)
        ways = "full" if array.ways == array.entries else array.ways
        found.append(f"{sizes} {array.entries}/{ways}")
    return found
