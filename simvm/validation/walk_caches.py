"""Mean loads of a walk with walk caches on, against a published mean over programs.

The published figures are a mean over workloads that are not at hand, on walk caches whose
sizes are not those of our sets, so the rows here are no more than like for like in kind. Each
carries a note on what makes it differ. 4 KiB pages throughout, in guest and host; all memory
is backed beforehand, so that no walk faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

from simvm.hardware import load_cpu
from simvm.hardware.geometry import PAGE, MmuGeometry, NestedTlb
from simvm.units import parse_bytes
from simvm.validation.machine import Machine
from simvm.validation.rows import Published, Row, basis, sized
from simvm.workload.patterns import random_bits, zipf_slots
from simvm.workload.trace import builtin_trace, open_trace

_ACCESSES = 1_000_000
_WARMUP = 250_000
_SKEW = 0.99
_MODES = ("native", "nested")


def load_rows(core: ModuleType, published: Published, full: bool) -> Iterator[Row]:
    """A fifth of the accesses when not at full size, but the program's always all.

    `random` is uniform; `skewed` is Zipf with the popular pages side by side; `program` is the
    recorded trace that is shipped, once through.
    """
    machines: dict[tuple[str, str], Machine] = {}
    for row in published["rows"]:
        name = f"{row['workload']} {row['footprint']}" if "footprint" in row else row["workload"]
        geometry, cpu = load_cpu(row["cpu"]).geometry, row["cpu"]
        if "nested_tlb" in row:
            geometry = _with_nested_tlb(geometry, row["nested_tlb"])
            cpu += f" with {row['nested_tlb']} nested TLB entries"
        for mode in row.get("modes", _MODES):
            if (name, mode) not in machines:
                machines[name, mode] = _machine(core, row, mode)
            loads = _loads_per_walk(core, machines[name, mode], geometry, row, full)
            target = f"loads per walk, {name}, {mode}, {cpu}"
            note = published["notes"][row["note"]]
            stands_on = basis(
                published, row, inputs=[f"cpu.{row['cpu']}.{key}" for key in published["parts"]]
            )
            yield Row(target, published[mode], loads, stands_on, note)


def _with_nested_tlb(geometry: MmuGeometry, entries: int) -> MmuGeometry:
    return replace(geometry, nested_tlb=NestedTlb(entries, max(entries, 1)))


def _machine(core: ModuleType, row: Any, mode: str) -> Machine:
    if row["workload"] == "program":
        size = open_trace(builtin_trace()).region_bytes
    else:
        size = parse_bytes(row["footprint"])
    machine = Machine(core, size, None if mode == "native" else 0, 0)
    machine.populate()
    return machine


def _loads_per_walk(
    core: ModuleType, machine: Machine, geometry: MmuGeometry, row: Any, full: bool
) -> float:
    vcpu, size = machine.vcpu(geometry), machine.region_bytes
    bits = random_bits(0, f"walk caches {row['workload']}")
    if row["workload"] == "program":
        stream = core.Stream.trace(bits, size)
        counts = {"walks": 0, "walk_loads": 0}
        for chunk in open_trace(builtin_trace()).chunks():
            stream.feed(chunk)
            grown = machine.counted(vcpu, stream, len(chunk))
            counts = {name: counts[name] + grown[name] for name in counts}
    else:
        if row["workload"] == "random":
            stream = core.Stream.uniform(bits, size)
        else:
            stream = core.Stream.zipf(bits, size, zipf_slots(size // PAGE, _SKEW), 1)
        machine.run(vcpu, stream, _WARMUP)
        counts = machine.counted(vcpu, stream, sized(full, _ACCESSES))
    return counts["walk_loads"] / counts["walks"]
