"""Tables for the terminal: variants side by side, and one run in detail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from simvm.report.labels import (
    METRICS,
    NOT_APPLICABLE,
    PART_LABELS,
    count,
    duration,
    number,
    share,
    size,
    times,
)

_LOOK: Final[dict[str, Any]] = {
    "title_justify": "left",
    "title_style": "bold",
    "box": box.SIMPLE_HEAD,
}

_GUEST_HEADS: Final = ("slowdown", "p99", "backed, peak", "touched, peak", "loads per walk",
                       "TLB misses per 1,000", "SLAT faults", "fault stall", "swapped in",
                       "")  # fmt: skip

MOST_ACROSS: Final = 7
"""More variants than this stand one under the other."""

_BRIEF: Final = (
    "peak_backed_bytes",
    "mean_backed_bytes",
    "peak_tables_bytes",
    "loads_per_walk",
    "cycles_per_walk",
    "tlb_misses_per_kaccess",
    "slat_faults",
    "fault_stall_ns",
    "slowdown",
)


def comparison_table(summary: Mapping[str, Any]) -> Table:
    """The closing table of a comparison summary, the best of each row in bold.

    Up to seven variants are columns; more are rows, with the main metrics alone. Either
    way it fits 120 columns when names are short.
    """
    names = summary.get("variant_order") or sorted(summary["variants"])
    rows = [summary["variants"][name] for name in names]
    title = escape(str(summary["name"]))
    if summary.get("partial"):
        reached = [f"{name} up to {duration(ns)}" for name, ns in summary["up_to_ns"].items()]
        title += escape(f" (partial: {', '.join(reached) or 'not all variants were run'})")
    table = Table(title=title, **_LOOK)
    if len(names) <= MOST_ACROSS:
        table.add_column("", style="dim")
        for name in names:
            table.add_column(Text(name), justify="right", overflow="fold")
        for metric in METRICS:
            cells = [metric.text(row) for row in rows]
            if set(cells) == {NOT_APPLICABLE}:
                continue
            table.add_row(metric.label, *_marked(cells, metric.best(rows)))
            if metric.key == "channel":
                table.add_section()
        return table
    shown = [metric for metric in METRICS if metric.key in _BRIEF]
    table.add_column("variant", overflow="fold")
    for metric in shown:
        table.add_column(metric.label, justify="right")
    columns = [
        _marked([metric.text(row) for row in rows], metric.best(rows)) for metric in shown
    ]
    for name, *cells in zip(names, *columns, strict=True):
        table.add_row(Text(name), *cells)
    return table


def guests_table(summary: Mapping[str, Any]) -> Table:
    """A run's guests, one row each."""
    table = Table(title="guests", **_LOOK)
    table.add_column("guest", overflow="fold")
    for head in _GUEST_HEADS:
        table.add_column(head, justify="right")
    for guest in summary["guests"]:
        spread = guest["slowdown_percentiles"] or {}
        totals, peaks = guest["totals"], guest["peaks"]
        table.add_row(
            Text(f"{guest['class']}.{guest['guest']}"),
            _or_na(guest["slowdown"], times),
            _or_na(spread.get("p99"), times),
            _or_na(peaks.get("backed_bytes"), size),
            _or_na(peaks.get("touched_bytes"), size),
            _or_na(guest["loads_per_walk"], number),
            _or_na(guest["tlb_misses_per_kaccess"], number),
            _or_na(totals.get("slat_faults"), count),
            _or_na(totals.get("fault_stall_ns"), duration),
            _or_na(totals.get("swap_ins"), count),
            Text("killed", style="red") if guest["killed"] else "",
        )
    return table


PHASE_HEADS: Final = ("class", "phase", "region", "measured", "accesses", "from", "to",
                      "slowdown", "mean latency", "p99 latency, worst guest")  # fmt: skip
REGION_HEADS: Final = ("class", "process", "region", "size", "touched", "backed at 4K",
                       "at 2M", "at 1G", "swapped")  # fmt: skip


def phase_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The phases of each class, its guests together, under :data:`PHASE_HEADS`."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for guest in summary["guests"]:
        for phase in guest["phases"]:
            groups.setdefault((guest["class"], phase["name"], phase["region"]), []).append(phase)
    rows: list[tuple[str, ...]] = []
    for key, phases in groups.items():
        ideal = sum(phase["ideal_ns"] for phase in phases)
        elapsed = sum(phase["elapsed_ns"] for phase in phases)
        ends = [phase["end_ns"] for phase in phases if phase["end_ns"] is not None]
        served = [phase for phase in phases if phase.get("requests") and phase.get("latency_ns")]
        requests = sum(phase["requests"] for phase in served)
        mean = sum(phase["latency_ns"]["mean"] * phase["requests"] for phase in served)
        rows.append((
            *key,
            "yes" if phases[0]["measure"] else "no",
            count(sum(phase["accesses"] for phase in phases)),
            duration(min(phase["start_ns"] for phase in phases)),
            duration(max(ends)) if ends else NOT_APPLICABLE,
            times(elapsed / ideal) if ideal else NOT_APPLICABLE,
            duration(mean / requests) if requests else NOT_APPLICABLE,
            duration(max(phase["latency_ns"]["p99"] for phase in served))
            if served else NOT_APPLICABLE,
        ))  # fmt: skip
    return rows


def region_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The named regions of each class at the end, its guests together, as :data:`REGION_HEADS`."""
    columns = ("bytes", "touched_bytes", "backed_4k_bytes", "backed_2m_bytes", "backed_1g_bytes",
               "swapped_bytes")  # fmt: skip
    groups: dict[tuple[str, str, str], list[int]] = {}
    for guest in summary["guests"]:
        for region in guest["regions"]:
            key = (guest["class"], region["process"], region["name"])
            sums = groups.setdefault(key, [0] * len(columns))
            for index, column in enumerate(columns):
                sums[index] += region[column]
    return [(*key, *(size(total) for total in sums)) for key, sums in groups.items()]


CAUSE_HEADS: Final = ("class", "cause", "vCPU time", "share")
PRESSURE_HEADS: Final = ("of", "some", "full", "some, in guests", "full, in guests",
                         "direct reclaim", "swapped in", "of the working set",
                         "mean refault distance")  # fmt: skip


def cause_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Where the vCPU time of each class went, under :data:`CAUSE_HEADS`; every phase, and boot."""
    rows: list[tuple[str, ...]] = []
    for name in summary["classes"]:
        each = [guest["elapsed"] for guest in summary["guests"] if guest["class"] == name]
        spent = {part: sum(one.get(part, 0) for one in each) for part in PART_LABELS}
        whole = sum(spent.values())
        rows += [
            (name, PART_LABELS[part], duration(ns), share(ns / whole))
            for part, ns in spent.items() if ns
        ]  # fmt: skip
    return rows


def pressure_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """How short memory was, of the host and of each class, under :data:`PRESSURE_HEADS`."""
    rows = []
    for name, of in (("host", summary["host"]), *summary["classes"].items()):
        totals, distance = of["totals"], of.get("refault_distance") or {}
        rows.append((
            name,
            *(_or_na(of.get(key), share)
              for key in ("psi_some", "psi_full", "guest_psi_some", "guest_psi_full")),
            _or_na(totals.get("direct_reclaim_ns"), duration),
            _or_na(totals.get("swap_ins"), count),
            _or_na(totals.get("refaults"), count),
            _or_na(distance.get("mean_bytes"), size),
        ))  # fmt: skip
    return rows


def phases_table(summary: Mapping[str, Any]) -> Table:
    """A run's phases, one row for each class and phase."""
    return _plain_table("phases", PHASE_HEADS, phase_rows(summary), texts=4)


def regions_table(summary: Mapping[str, Any]) -> Table:
    """A run's named regions, one row for each class and region."""
    return _plain_table("regions", REGION_HEADS, region_rows(summary), texts=3)


def _plain_table(
    title: str, heads: tuple[str, ...], rows: list[tuple[str, ...]], texts: int
) -> Table:
    table = Table(title=title, **_LOOK)
    keep = [
        index for index in range(len(heads)) if any(row[index] != NOT_APPLICABLE for row in rows)
    ]
    for index in keep:
        table.add_column(heads[index], justify="left" if index < texts else "right")
    for row in rows:
        table.add_row(*(Text(row[index]) for index in keep))
    return table


def _marked(cells: list[str], best: list[bool]) -> list[Text]:
    return [
        Text(cell, style="bold" if mark else "") for cell, mark in zip(cells, best, strict=True)
    ]


def _or_na(value: Any, show: Any) -> str:
    return NOT_APPLICABLE if value is None else str(show(value))
