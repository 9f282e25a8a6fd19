"""The columns of a timeline: the one place that names them.

A timeline has a row per sample and scope: the host, each class of guests, each
guest. A *gauge* is what holds at the moment of the sample, a *counter* what has
happened since the run began (so that the difference of two rows is what happened
between them), a *ratio* belongs to the interval that the sample ends. A column
that means nothing at a scope, or that the run did not record, is null there.

Names end in their unit: ``_bytes``, ``_ns``, ``_cycles``; a name without one
counts what it says. The summary of a run uses the same names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Scope = Literal["host", "class", "guest"]
Kind = Literal["key", "gauge", "counter", "ratio"]

HOST: Final = "host"
CLASS: Final = "class"
GUEST: Final = "guest"
SCOPES: Final[tuple[Scope, ...]] = (HOST, CLASS, GUEST)
"""Every scope of a row, from the widest to the narrowest."""

_HOST_ONLY: Final[tuple[Scope, ...]] = (HOST,)
_NOT_CLASS: Final[tuple[Scope, ...]] = (HOST, GUEST)
_GUEST_ONLY: Final[tuple[Scope, ...]] = (GUEST,)

PSI_WINDOWS: Final = (10, 60, 300)
"""Over how many seconds pressure is averaged."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, unit (``""`` for a plain text), kind, scopes and meaning."""

    name: str
    unit: str
    kind: Kind
    meaning: str
    scopes: tuple[Scope, ...] = SCOPES


def _gauge(name: str, meaning: str, scopes: tuple[Scope, ...] = SCOPES) -> Column:
    return Column(name, "bytes", "gauge", meaning, scopes)


def _count(name: str, unit: str, meaning: str, scopes: tuple[Scope, ...] = SCOPES) -> Column:
    return Column(name, unit, "counter", meaning, scopes)


def _time(name: str, meaning: str, scopes: tuple[Scope, ...] = SCOPES) -> Column:
    return Column(name, "ns", "counter", meaning, scopes)


def _pressure(prefix: str, whose: str, scopes: tuple[Scope, ...]) -> tuple[Column, ...]:
    columns: list[Column] = []
    for kind, what in (
        ("some", "share of its threads that stalls on memory hit"),
        ("full", "share of its threads that stalls on memory leave idle"),
    ):
        columns.append(Column(f"{prefix}_{kind}", "", "ratio", f"{whose}: {what}.", scopes))
        columns += [
            Column(f"{prefix}_{kind}_avg{window}", "", "ratio",
                   f"The kernel's average of {prefix}_{kind} over {window} s, brought up every "
                   "2 s.", scopes)
            for window in PSI_WINDOWS
        ]  # fmt: skip
    return tuple(columns)


KEYS: Final[tuple[Column, ...]] = (
    Column("time_ns", "ns", "key", "Simulated time of the sample."),
    Column("scope", "", "key", "What the row is about: host, class or guest."),
    Column("class", "", "key", "The class of guests; empty for the host."),
    Column("guest", "index", "key", "The guest's number in its class; -1 for host and class."),
)

GAUGES: Final[tuple[Column, ...]] = (
    _gauge("backed_bytes", "Host frames mapped for guest memory, guest tables and boot included."),
    _gauge("backed_4k_bytes", "The part of backed that is mapped by 4 KiB leaves."),
    _gauge("backed_2m_bytes", "The part of backed that is mapped by 2 MiB leaves."),
    _gauge("backed_1g_bytes", "The part of backed that is mapped by 1 GiB leaves."),
    _gauge("touched_bytes", "4 KiB for each guest page accessed since it was last allocated."),
    _gauge("committed_bytes", "What the guest was promised."),
    _gauge("tables_bytes", "SLAT, shadow, host and guest page tables, without deposited ones."),
    _gauge("slat_tables_bytes", "Second-level tables (guest physical to host physical)."),
    _gauge("shadow_tables_bytes", "Shadow paging: shadow tables, with the page beside each, and "
           "the reverse map."),
    _gauge("host_tables_bytes", "The VMM's own page tables in the host."),
    _gauge("guest_tables_bytes", "Page tables inside the guest; they are in backed as well."),
    _gauge("deposited_tables_bytes", "PTE tables kept in reserve for splitting a huge page."),
    _gauge("guest_free_bytes", "Free memory of the guest, as its own kernel counts it."),
    _gauge("guest_huge_bytes", "Mapped by the guest in pages of 2 MiB and 1 GiB."),
    _gauge("page_cache_bytes", "The guest's page cache."),
    _gauge("guest_swapped_bytes", "Memory of programs on the guest's own swap device."),
    _gauge("swapped_bytes", "Guest memory that lies on a swap device."),
    _gauge("tier_bytes", "Guest memory used where it lies on CXL; not in backed."),
    _gauge("merged_bytes", "Guest memory mapped to merged frames; not in backed."),
    _gauge("aligned_huge_bytes", "Mapped by 2 MiB or more in the guest and below that in the host "
           "(in a container: in the host)."),
    _gauge("stranded_bytes", "Backed by the host but free in the guest."),
    _gauge("withheld_bytes", "Guest memory that a channel keeps from it, as a balloon does."),
    _gauge("damon_hot_bytes", "Memory in regions that DAMON found accessed in its last "
           "aggregation."),
    _gauge("held_bytes", "The part of backed that no second-level entry maps: the page cache of a "
           "memfd, and what was protected, locked or freed lazily and not touched since."),
    _gauge("locked_bytes", "Guest memory that the guest has locked into RAM."),
    Column("host_vmas", "VMAs", "gauge", "Ranges that the VMM's mapping of guest memory is made "
           "of."),
    Column("alive_guests", "guests", "gauge", "Guests that are there: from arrival to departure."),
    _gauge("vmm_overhead_bytes", "Memory of the VMM itself."),
    _gauge("free_bytes", "Free frames, without the hugetlb pool.", _HOST_ONLY),
    _gauge("hugetlb_free_bytes", "Free pages of the hugetlb pool.", _HOST_ONLY),
    _gauge("free_huge_bytes", "Free memory in whole blocks of 2 MiB, without the hugetlb pool.",
           _HOST_ONLY),
    _gauge("scattered_bytes", "Pages of the host's own that fragment its memory.", _HOST_ONLY),
    _gauge("lazy_bytes", "Freed lazily by guests, and in backed until reclaim takes it.",
           _HOST_ONLY),
    _gauge("partial_bytes", "Unmapped parts of folios still held whole.", _HOST_ONLY),
    _gauge("writeback_bytes", "Pages isolated by reclaim or on their way to swap.", _HOST_ONLY),
    _gauge("memmap_bytes", "The host's own struct pages.", _HOST_ONLY),
    _gauge("reserved_bytes", "Fixed overhead of the host.", _HOST_ONLY),
    _gauge("swap_used_bytes", "Swap slots in use.", _HOST_ONLY),
    _gauge("merged_frames_bytes", "Frames that same-page merging shares, each once.", _HOST_ONLY),
    _gauge("merge_metadata_bytes", "What ksmd keeps of each page that it has looked at.",
           _HOST_ONLY),
    _gauge("compressed_pool_bytes", "RAM of zram's or zswap's compressed pool.", _HOST_ONLY),
    _gauge("compressed_bytes", "Guest memory that lies in that pool, uncompressed.", _HOST_ONLY),
)

COUNTERS: Final[tuple[Column, ...]] = (
    _count("accesses", "accesses", "Memory accesses done by guests."),
    _count("l1_hits", "accesses", "Accesses translated by a first-level TLB."),
    _count("l2_hits", "accesses", "Accesses translated by the second-level TLB."),
    _count("tlb_misses", "misses", "Misses of the last TLB level."),
    _count("walks", "walks", "Page walks that completed."),
    _count("walk_loads", "loads", "Page-table entries loaded by completed walks."),
    _count("walk_cycles", "cycles", "Cycles of completed walks, whether hidden or not."),
    _count("walker_wait_cycles", "cycles", "Cycles that walks waited for a page walker, where part "
           "of a walk is hidden."),
    _count("guest_faults", "faults", "Page faults served by the guest's kernel."),
    _count("page_table_writes", "entries", "Shadow paging: guest page-table entries written, each "
           "of which trapped."),
    _count("shadow_fills", "entries", "Shadow paging: entries filled by the host."),
    _count("slat_faults", "faults", "Faults on missing second-level entries (in a container: host "
           "page faults; under shadow paging: guest memory not backed)."),
    _count("slat_faults_4k", "faults", "The part of them that backed 4 KiB."),
    _count("slat_faults_2m", "faults", "The part of them that backed 2 MiB."),
    _count("slat_faults_1g", "faults", "The part of them that backed 1 GiB."),
    _count("slat_remaps", "faults", "Faults that found the page in the host's memory and only "
           "mapped it."),
    _count("fault_retries", "faults", "Faults begun anew because an invalidation overtook them."),
    _count("guest_zeroed_bytes", "bytes", "Zeroed by the guest's kernel."),
    _count("guest_reuse_zeroed_bytes", "bytes", "The part of it zeroed only because somebody had "
           "used the memory before."),
    _count("cache_reads", "pages", "4 KiB pages of files read or written through the page cache."),
    _count("cache_misses", "pages", "The part of them that came from the guest's disk."),
    _count("cache_drops", "pages", "Pages that the guest's reclaim took from the page cache."),
    _count("cache_writebacks", "pages", "The part of them that had to be written first."),
    _count("guest_swap_ins", "pages", "4 KiB pages read back from the guest's own swap device."),
    _count("guest_swap_outs", "pages", "4 KiB pages that the guest's reclaim swapped out."),
    _count("guest_collapses", "pages", "2 MiB pages made by khugepaged in the guest."),
    _count("swap_ins", "pages", "4 KiB pages read back from swap."),
    _count("swap_outs", "pages", "4 KiB pages written to swap."),
    _count("swap_written_back", "pages", "4 KiB pages moved from zswap's pool to its device.",
           _HOST_ONLY),
    _count("refaults", "pages", "Reclaimed pages faulted in again while still of the working set."),
    _count("merges", "pages", "4 KiB pages that became one with others of the same content."),
    _count("unmerges", "pages", "Merged pages that were written, and copied."),
    _count("damon_probes", "accesses", "Accesses about to be made at samples, held against what "
           "DAMON knows."),
    _count("damon_hits", "accesses", "The part of them in regions that DAMON takes for hot."),
    _count("host_splits", "folios", "Huge mappings of the host broken into smaller ones."),
    _count("collapses", "folios", "Huge mappings of the host that its khugepaged made."),
    _count("shootdowns", "shootdowns", "TLB shootdowns of the guest's vCPUs."),
    _count("hint_calls", "calls", "Calls of the guest over its channel to the host."),
    _count("pages_moved", "pages", "4 KiB of guest memory that the guest's kernel moved, to unplug "
           "where it was or to make a block whole."),
    _count("hint_failures", "calls", "Ranges for which the host refused what the guest asked."),
    _count("protection_faults", "faults", "Accesses to memory that the guest had protected; each "
           "ends its guest."),
    _count("requests", "requests", "Requests of open-loop phases completed."),
    _count("arrived_guests", "guests", "Guests that have begun to boot or to migrate in."),
    _count("departed_guests", "guests", "Guests that are gone, however they went."),
    _count("migrated_in_bytes", "bytes", "Guest memory that has come by live migration."),
    _count("migrated_out_bytes", "bytes", "Guest memory sent by live migration, all rounds."),
    _count("oom_kills", "guests", "Guests killed because nothing was left to reclaim."),
    _time("elapsed_ns", "vCPU time from the start to the end of phases: the sum of its parts."),
    _time("ideal_ns", "vCPU time had translation, faults and waiting been free."),
    _time("compute_ns", "Compute and data latency of the accesses."),
    _time("think_ns", "Pauses that the workload itself asks for."),
    _time("translation_ns", "Walks and TLB penalties that execution did not hide."),
    _time("translation_error_ns", "Sampled fidelity: the standard error of translation_ns, as if "
          "all errors went the same way."),
    _time("guest_fault_ns", "The guest's own page faults, its zeroing included; with per-CPU "
          "lists what it frees too."),
    _time("guest_reclaim_ns", "Direct reclaim in the guest, and waiting for its devices there."),
    _time("guest_swap_in_ns", "Waiting for pages to come back from the guest's own swap device."),
    _time("page_table_trap_ns", "Shadow paging: writes to guest page tables, and exits on missing "
          "shadow entries."),
    _time("fault_wait_ns", "SLAT faults: waiting for a worker or a lock."),
    _time("fault_service_ns", "SLAT faults: exit, allocation (direct reclaim included), zeroing, "
          "mapping."),
    _time("swap_in_ns", "Waiting for pages to come back from swap."),
    _time("tier_ns", "Extra latency of accesses to memory that is used where it lies on CXL."),
    _time("shootdown_ns", "Interrupted by TLB shootdowns."),
    _time("hint_ns", "Calls over the channel to the host."),
    _time("core_wait_ns", "Ready to run, waiting for a host core."),
    _time("direct_reclaim_ns", "The part of fault_service_ns spent on reclaim."),
    _time("throttled_ns", "The part of fault_wait_ns that a guest slept above its memcg.high."),
    _time("fault_stall_ns", "Stalled by SLAT faults: wait, service and swap-in together."),
    _time("kernel_thread_ns", "Host CPU time of threads beside the vCPUs: the guest's kernel's and "
          "its VMM's."),
    _time("psi_some_ns", "Time, weighed by psi_some: of the host, or of the guest's tasks on it.",
          _NOT_CLASS),
    _time("psi_full_ns", "Time, weighed by psi_full.", _NOT_CLASS),
    _time("guest_psi_some_ns", "Time, weighed by guest_psi_some: what the guest's kernel sees.",
          _GUEST_ONLY),
    _time("guest_psi_full_ns", "Time, weighed by guest_psi_full.", _GUEST_ONLY),
    _time("direct_compaction_ns", "The part of fault_service_ns spent on compaction."),
    _time("kcompactd_ns", "Host CPU time of background compaction.", _HOST_ONLY),
    _time("khugepaged_ns", "Host CPU time of khugepaged, compaction for it included.", _HOST_ONLY),
    _count("pages_migrated", "pages", "4 KiB pages that compaction moved.", _HOST_ONLY),
    _count("compaction_failures", "attempts", "Compaction went over all of memory and freed no "
           "block of 2 MiB.", _HOST_ONLY),
    _time("kswapd_ns", "Host CPU time of background reclaim.", _HOST_ONLY),
    _time("ksmd_ns", "Host CPU time of same-page merging.", _HOST_ONLY),
    _count("ksm_pages_scanned", "pages", "4 KiB pages that ksmd looked at.", _HOST_ONLY),
    _count("ksm_full_scans", "passes", "Passes that ksmd has begun after its first one.",
           _HOST_ONLY),
    _time("swap_worker_ns", "Host CPU time of zswap's writeback.", _HOST_ONLY),
    _time("proactive_ns", "Host CPU time of reclaim before memory is short.", _HOST_ONLY),
    _time("damon_ns", "Host CPU time of DAMON: looking, and paging out.", _HOST_ONLY),
    _count("damon_pages", "pages", "4 KiB pages that DAMON paged out.", _HOST_ONLY),
    _time("aging_ns", "The part of reclaim's CPU time spent on looking for accessed bits.",
          _HOST_ONLY),
    _count("folios_scanned", "folios", "Folios that reclaim looked at.", _HOST_ONLY),
    _count("folios_reclaimed", "folios", "Folios that reclaim freed.", _HOST_ONLY),
)

RATIOS: Final[tuple[Column, ...]] = (
    Column("slowdown", "", "ratio", "Elapsed over ideal in the interval, measured phases alone; "
           "null where none made an access."),
    *_pressure("psi", "Memory pressure of the host, or of the guest's tasks on it", _NOT_CLASS),
    *_pressure("guest_psi", "Memory pressure as the guest's kernel sees it", _GUEST_ONLY),
)

COLUMNS: Final[tuple[Column, ...]] = KEYS + GAUGES + COUNTERS + RATIOS
"""Every column, in the order of the timeline."""

COLUMN: Final[dict[str, Column]] = {column.name: column for column in COLUMNS}

KEY_NAMES: Final[tuple[str, ...]] = tuple(column.name for column in KEYS)
GAUGE_NAMES: Final[tuple[str, ...]] = tuple(column.name for column in GAUGES)
COUNTER_NAMES: Final[tuple[str, ...]] = tuple(column.name for column in COUNTERS)
RATIO_NAMES: Final[tuple[str, ...]] = tuple(column.name for column in RATIOS)
PRESSURE_NAMES: Final[tuple[str, ...]] = tuple(n for n in RATIO_NAMES if n != "slowdown")
"""The ratios of memory pressure, whose peaks a summary holds."""

VALUE_NAMES: Final[tuple[str, ...]] = GAUGE_NAMES + COUNTER_NAMES + RATIO_NAMES

ELAPSED_PARTS: Final[tuple[str, ...]] = (
    "compute_ns",
    "think_ns",
    "translation_ns",
    "guest_fault_ns",
    "guest_reclaim_ns",
    "guest_swap_in_ns",
    "page_table_trap_ns",
    "fault_wait_ns",
    "fault_service_ns",
    "swap_in_ns",
    "tier_ns",
    "shootdown_ns",
    "hint_ns",
    "core_wait_ns",
)
"""The parts whose sum is ``elapsed_ns``, to the nanosecond."""

FAULT_STALL_PARTS: Final[tuple[str, ...]] = ("fault_wait_ns", "fault_service_ns", "swap_in_ns")
"""The parts whose sum is ``fault_stall_ns``."""


def names_at(scope: Scope) -> tuple[str, ...]:
    """The value columns that have a meaning at `scope`, in order."""
    return tuple(name for name in VALUE_NAMES if scope in COLUMN[name].scopes)
