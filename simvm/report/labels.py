"""What a reader sees in place of a column name and a bare number.

Numbers are rounded for reading, three digits or so; exact ones stand in the summaries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from simvm.units import human_bytes, human_ns

NOT_APPLICABLE: Final = "n/a"

PART_LABELS: Final[dict[str, str]] = {
    "compute_ns": "compute",
    "think_ns": "think",
    "translation_ns": "translation",
    "guest_fault_ns": "guest faults",
    "guest_reclaim_ns": "reclaim in the guest",
    "guest_swap_in_ns": "swap-in in the guest",
    "page_table_trap_ns": "page-table traps",
    "fault_wait_ns": "SLAT faults: wait",
    "fault_service_ns": "SLAT faults: service",
    "swap_in_ns": "swap-in",
    "tier_ns": "memory on CXL",
    "shootdown_ns": "shootdowns",
    "hint_ns": "hint calls",
    "core_wait_ns": "waiting for a core",
}
"""The causes of elapsed time, by column."""


def number(value: float) -> str:
    """Three significant digits, or all digits before the point: 0.00312, 5.31, 14.2, 1,234."""
    if value == 0:
        return "0"
    size = abs(value)
    if size < 0.01:
        return f"{value:.3g}"
    decimals = 2 if round(size, 2) < 10 else 1 if round(size, 1) < 100 else 0
    return f"{value:,.{decimals}f}"


def size(count: float) -> str:
    """Bytes in the largest binary unit of which there is one: 8 GiB, 5.31 GiB, 512 KiB."""
    return human_bytes(round(count))


def duration(ns: float) -> str:
    """Nanoseconds in the largest unit of which there is one: 1.25 s, 40 us."""
    return human_ns(round(ns))


def count(value: float) -> str:
    """A whole number with its thousands apart."""
    return f"{round(value):,}"


def times(value: float) -> str:
    """A ratio, three decimals and a times sign."""
    return f"{value:,.3f}×"


def share(value: float) -> str:
    """A part of a whole, in percent."""
    return f"{number(100 * value)} %"


@dataclass(frozen=True, slots=True)
class Metric:
    """A row of the comparison: how it is called, shown and explained.

    `lower_is_better` marks the best variants; settings and mere facts have none.
    """

    key: str
    label: str
    show: Callable[[Any], str]
    meaning: str
    lower_is_better: bool = True

    def text(self, row: Mapping[str, Any]) -> str:
        """The cell of a variant."""
        value = row.get(self.key)
        return NOT_APPLICABLE if value is None else self.show(value)

    def best(self, rows: Sequence[Mapping[str, Any]]) -> list[bool]:
        """Which variants read the lowest, unless all read the same."""
        texts = [self.text(row) for row in rows]
        known = [row[self.key] for row in rows if row.get(self.key) is not None]
        if not self.lower_is_better or not known or len(set(texts)) == 1:
            return [False] * len(rows)
        lowest = self.show(min(known))
        return [text == lowest for text in texts]


def _setting(key: str, label: str, meaning: str) -> Metric:
    return Metric(key, label, str, meaning, lower_is_better=False)


METRICS: Final[tuple[Metric, ...]] = (
    _setting("virtualization", "virtualization", "nested: a guest under a second-level table "
             "(SLAT); shadow: a guest whose tables the host shadows; none: a container, one table "
             "alone."),
    _setting("guest_page_size", "guest pages", "The page size that guests map memory with."),
    _setting("host_page_size", "host pages", "What one SLAT fault backs."),
    _setting("zeroing", "guest zeroing", "Whether the guest zeroes what it allocates."),
    _setting("channel", "channel", "How the guest gives memory back to the host."),
    Metric("peak_backed_bytes", "backed, peak", size,
           "Host frames mapped for guest memory, guest tables and boot included: the most at "
           "any time."),
    Metric("mean_backed_bytes", "backed, mean", size, "The same, mean over time."),
    Metric("peak_touched_bytes", "touched, peak", size,
           "4 KiB for each guest page accessed since it was last allocated.",
           lower_is_better=False),
    Metric("committed_bytes", "committed", size, "What the guests were promised.",
           lower_is_better=False),
    Metric("peak_tables_bytes", "page tables, peak", size,
           "SLAT, shadow, host and guest tables, without deposited ones."),
    Metric("peak_deposited_tables_bytes", "deposited tables, peak", size,
           "Page tables that the host keeps in reserve for splitting huge pages."),
    Metric("loads_per_walk", "loads per walk", number,
           "Page-table entries loaded by a page walk, mean."),
    Metric("cycles_per_walk", "cycles per walk", number, "CPU cycles of a page walk, mean."),
    Metric("tlb_misses_per_kaccess", "TLB misses per 1,000", number,
           "Misses of the last TLB level per thousand accesses."),
    Metric("slat_faults", "SLAT faults", count,
           "Faults on memory the host had not backed (in a container: page faults)."),
    Metric("guest_faults", "guest faults", count, "Page faults served by guest kernels."),
    Metric("fault_stall_ns", "fault stall", duration,
           "vCPU time spent in SLAT faults: waiting, service and swap-in, over the whole run."),
    Metric("psi_some", "memory pressure", share,
           "Share of the run in which tasks of the host were stalled on memory, weighed by their "
           "share of its threads."),
    Metric("returned_share", "freed memory returned", share,
           "Share of what guests freed that came back to the host before they freed again.",
           lower_is_better=False),
    Metric("first_gib_back_ns", "first GiB back after", duration,
           "From a free until the host had 1 GiB back, mean over frees of which so much came."),
    Metric("last_back_ns", "last byte back after", duration,
           "From a free until the last that came back of it, mean over frees."),
    Metric("swap_ins", "pages swapped in", count, "4 KiB pages read back from swap."),
    Metric("swap_outs", "pages swapped out", count, "4 KiB pages written to swap."),
    Metric("oom_kills", "OOM kills", count,
           "Guests killed because the host had nothing left to reclaim."),
    Metric("slowdown", "slowdown", times,
           "Elapsed over ideal vCPU time in the measured phases."),
)  # fmt: skip
"""The rows of a comparison table, in order."""
