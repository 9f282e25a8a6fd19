"""Run directories that look like those of a simulation, made by arithmetic.

What reads results is tested on these: five ways to back four guests, with a populating
phase, a measured phase, and a while of memory pressure in the middle. The identities of a
real run hold (parts add up to elapsed, classes and the host are sums of guests).
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from simvm.columns import COUNTER_NAMES, ELAPSED_PARTS, FAULT_STALL_PARTS, GAUGE_NAMES, names_at
from simvm.provenance import Stopwatch, digest, manifest
from simvm.recorder import Recorder
from simvm.results import RunWriter, percentiles
from simvm.timeline import TIMELINE_FILE

GIB = 1 << 30
MIB = 1 << 20
SAMPLE_NS = 5_000_000
GUESTS = 4
POPULATE = 40  # samples of the first, unmeasured phase

# Page sizes of guest and host, zeroing, channel; backed over touched, loads per walk,
# misses per access, cycles per load.
_KEYS = ("guest", "host", "zeroing", "channel", "factor", "loads", "misses", "cycles")
_ROWS: dict[str, tuple[Any, ...]] = {
    "base": ("1GiB", "2MiB", "none", "passthrough", 1.06, 3.1, 0.21, 14),
    "pages_4k": ("4KiB", "4KiB", "guest", "none", 1.0, 5.4, 0.62, 19),
    "thp": ("2MiB", "2MiB", "guest", "none", 1.08, 3.9, 0.21, 15),
    "hugetlb": ("1GiB", "2MiB", "guest", "none", 1.9, 3.1, 0.21, 14),
    "container": (None, "2MiB", None, None, 1.02, 1.4, 0.21, 13),
}
SHAPES: dict[str, dict[str, Any]] = {
    name: dict(zip(_KEYS, row, strict=True)) for name, row in _ROWS.items()
}


def _guest_row(shape: dict[str, Any], guest: int, step: int, steps: int) -> dict[str, int]:
    """Cumulative counters and gauges of a guest at a sample."""
    populated = min(step, POPULATE) / POPULATE
    late = max(0, step - POPULATE)
    pressure = sum(
        math.exp(-(((i - 0.6 * steps) / (0.06 * steps)) ** 2)) for i in range(POPULATE, step)
    )
    touched = int((2.4 + 0.1 * guest) * GIB * populated * (1 + 0.0006 * late)) & ~4095
    ceiling = 8 * GIB
    factor = shape["factor"]
    backed = min(ceiling, int(touched * factor) + 550 * MIB) // (2 * MIB) * 2 * MIB
    accesses = 20_000 * min(step, POPULATE) + 60_000 * late + 100 * guest
    misses = int(accesses * shape["misses"] * (1 + 0.01 * guest)) + int(pressure * 1_500)
    loads = int(misses * shape["loads"]) + int(pressure * 6_000)
    cycles = int(loads * shape["cycles"])
    faults = (
        touched // (4096 if shape["host"] == "4KiB" else 2 * MIB) + int(pressure * 8)
    )
    swap_outs = int(pressure * 60 * factor)
    swap_ins = int(pressure * 40 * factor)
    row = dict.fromkeys(GAUGE_NAMES + COUNTER_NAMES, 0)
    row.update(
        touched_bytes=touched,
        backed_bytes=backed,
        backed_2m_bytes=0 if shape["host"] == "4KiB" else backed,
        backed_4k_bytes=backed if shape["host"] == "4KiB" else 0,
        committed_bytes=ceiling,
        tables_bytes=backed // (512 if shape["host"] == "4KiB" else 512 * 512) + 1 * MIB,
        deposited_tables_bytes=0 if shape["host"] == "4KiB" else backed // 512,
        swapped_bytes=max(0, swap_outs - swap_ins) * 4096,
        vmm_overhead_bytes=64 * MIB,
        accesses=accesses,
        tlb_misses=misses,
        walks=misses,
        l1_hits=(accesses - misses) // 2,
        l2_hits=accesses - misses - (accesses - misses) // 2,
        walk_loads=loads,
        walk_cycles=cycles,
        guest_faults=touched // (4096 if shape["guest"] == "4KiB" else 2 * MIB),
        slat_faults=faults,
        swap_ins=swap_ins,
        swap_outs=swap_outs,
        compute_ns=accesses * 7,
        translation_ns=cycles * 3 // 35,
        guest_fault_ns=int(touched / GIB * 9_000_000),
        fault_wait_ns=faults * 300,
        fault_service_ns=faults * (900 if shape["host"] == "4KiB" else 60_000),
        swap_in_ns=swap_ins * 9_000,
        shootdown_ns=swap_outs * 400,
        hint_ns=20_000 if shape["channel"] == "passthrough" else 0,
        core_wait_ns=accesses // 12,
        ideal_ns=accesses * 7,
    )
    row["elapsed_ns"] = sum(row[part] for part in ELAPSED_PARTS)
    row["fault_stall_ns"] = sum(row[part] for part in FAULT_STALL_PARTS)
    return row


def _slowdown(now: dict[str, int], before: dict[str, int], step: int) -> float | None:
    ideal = now["ideal_ns"] - before["ideal_ns"]
    if step <= POPULATE or not ideal:
        return None
    return (now["elapsed_ns"] - before["elapsed_ns"]) / ideal


def _ratios(totals: dict[str, int]) -> dict[str, Any]:
    return {
        "loads_per_walk": totals["walk_loads"] / totals["walks"],
        "cycles_per_walk": totals["walk_cycles"] / totals["walks"],
        "tlb_misses_per_kaccess": 1000 * totals["tlb_misses"] / totals["accesses"],
    }


def _sums(rows: list[dict[str, int]]) -> dict[str, int]:
    return {name: sum(row[name] for row in rows) for name in rows[0]}


def _phases(rows: list[dict[str, int]]) -> list[dict[str, Any]]:
    zero = dict.fromkeys(rows[0], 0)
    phases = []
    for name, first, last in (("populate", zero, POPULATE), ("serve", rows[POPULATE], -1)):
        parts = {part: rows[last][part] - first[part] for part in ELAPSED_PARTS}
        elapsed = sum(parts.values())
        ideal = rows[last]["ideal_ns"] - first["ideal_ns"]
        phases.append({
            "name": name, "task": "main", "region": "heap", "measure": name == "serve",
            "start_ns": 0 if name == "populate" else POPULATE * SAMPLE_NS,
            "end_ns": (POPULATE if name == "populate" else len(rows) - 1) * SAMPLE_NS,
            "elapsed_ns": elapsed, "ideal_ns": ideal,
            "slowdown": elapsed / ideal if ideal else None,
            "accesses": rows[last]["accesses"] - first["accesses"], "parts": parts,
        })
    return phases


def write_variant(
    writer: RunWriter,
    variant: str,
    *,
    name: str = "synthetic",
    question: str = "What does each way of backing four guests cost and gain?",
    samples: int = 200,
    shape: str | None = None,
    partial: bool = False,
) -> None:
    """Record one variant into `writer`: `GUESTS` guests of the class web, `samples` samples."""
    form = SHAPES[shape or variant]
    steps = samples if form["misses"] < 0.5 else int(samples * 1.3)
    history = [[_guest_row(form, guest, step, steps) for step in range(steps + 1)]
               for guest in range(GUESTS)]
    with Recorder(writer.variant(variant) / TIMELINE_FILE, thorough=True) as recorder:
        for step in range(steps + 1):
            rows = [guest[step] for guest in history]
            before = [guest[max(0, step - 1)] for guest in history]
            for scope, class_, parts in (
                ("host", "", [(-1, _sums(rows), _sums(before))]),
                ("class", "web", [(-1, _sums(rows), _sums(before))]),
                ("guest", "web", list(zip(range(GUESTS), rows, before, strict=True))),
            ):
                known = names_at(scope)  # type: ignore[arg-type]
                for guest, now, then in parts:
                    values = {key: now[key] for key in known if key in now}
                    if scope != "class":
                        some = step % 5 / 5 if step > POPULATE else 0.0
                        values |= {"psi_some": some, "psi_full": some / 2}
                    recorder.append(step * SAMPLE_NS, scope, class_, guest,
                                    {**values, "slowdown": _slowdown(now, then, step)})
    guests = []
    measured = {"elapsed_ns": 0, "ideal_ns": 0}
    for index, rows in enumerate(history):
        phases = _phases(rows)
        for key in measured:
            measured[key] += sum(phase[key] for phase in phases if phase["measure"])
        slow = [_slowdown(now, then, step)
                for step, (then, now) in enumerate(pairwise(rows), start=1)]
        guests.append({
            "class": "web", "guest": index, "totals": {key: rows[-1][key] for key in COUNTER_NAMES},
            "peaks": {key: max(row[key] for row in rows) for key in GAUGE_NAMES},
            "means": {key: sum(row[key] for row in rows) // len(rows) for key in GAUGE_NAMES},
            "slowdown": phases[-1]["slowdown"],
            "slowdown_percentiles": percentiles([value for value in slow if value is not None]),
            **_ratios(rows[-1]),
            "stream_digest": digest(f"guest {index}"), "killed": False,
            "elapsed": {part: rows[-1][part] for part in ELAPSED_PARTS},
            "phases": phases,
            "regions": [{
                "name": "heap", "process": "app", "bytes": 4 * GIB, "swapped_bytes": 0,
                **{key: rows[-1][key] for key in (
                    "touched_bytes", "backed_4k_bytes", "backed_2m_bytes", "backed_1g_bytes")},
            }],
        })
    totals = _sums([guest["totals"] for guest in guests])
    over_time = [_sums([guest[step] for guest in history]) for step in range(steps + 1)]
    whole = {
        "totals": totals,
        "peaks": {key: max(row[key] for row in over_time) for key in GAUGE_NAMES},
        "means": {key: sum(row[key] for row in over_time) // len(over_time) for key in GAUGE_NAMES},
        "slowdown": measured["elapsed_ns"] / measured["ideal_ns"] if measured["ideal_ns"] else None,
        **_ratios(totals),
    }
    toml = f'schema = 1\n[scenario]\nname = "{name}"\n'
    summary = {
        "schema_version": 1,
        "scenario": {"name": name, "question": question, "seed": 1,
                     "digest": digest(toml), "simulated_ns": steps * SAMPLE_NS, "partial": partial},
        "host": {"memory_bytes": 48 * GIB, "page_size": form["host"], "oom_kills": 0, **whole},
        "classes": {"web": {
            "virtualization": "none" if form["guest"] is None else "nested",
            "page_size": form["guest"], "zeroing": form["zeroing"], "channel": form["channel"],
            "slowdown_percentiles": percentiles(
                [guest["slowdown"] for guest in guests if guest["slowdown"]]), **whole,
        }},
        "guests": guests,
    }
    writer.write(
        variant, summary=summary, scenario_toml=toml,
        manifest=manifest(scenario_digest=digest(toml), seed=1, variant=variant,
                          watch=Stopwatch(), accesses=totals["accesses"],
                          events=totals["accesses"] // 1000,
                          simulated_ns=steps * SAMPLE_NS, partial=partial,
                          exit_reason="interrupted" if partial else "done"),
    )


def write_run(
    directory: Path,
    variants: tuple[str, ...] = tuple(SHAPES),
    **keywords: Any,
) -> Path:
    """A run directory with the given variants; keywords as :func:`write_variant`."""
    with RunWriter(directory) as writer:
        for variant in variants:
            write_variant(writer, variant, **keywords)
        writer.publish()
    return directory
