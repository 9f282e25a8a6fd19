"""Samples: what host, classes and guests hold and have done, at one moment.

The names are those of `simvm.columns`. A class's row is the sum of its guests'; the
slowdown of an interval is elapsed over ideal of what measured phases did in it.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from simvm import _core
from simvm.columns import COLUMN, ELAPSED_PARTS, FAULT_STALL_PARTS
from simvm.hardware.geometry import BLOCK
from simvm.model.pressure import Gauge
from simvm.model.tasks import add_up

if TYPE_CHECKING:
    from simvm.model.guest import Guest
    from simvm.model.host import Host
    from simvm.recorder import Recorder

MMU_COUNTERS = (
    "accesses", "l1_hits", "l2_hits", "tlb_misses", "walks", "walk_loads", "walk_cycles",
    "walker_wait_cycles",
)  # fmt: skip


def guest_values(guest: Guest) -> dict[str, int]:
    """A guest's gauges and counters."""
    backed = guest.backed_by_order
    mmu = add_up([vcpu.core.counters() for vcpu in guest.vcpus])
    parts = add_up([vcpu.account.parts() for vcpu in guest.vcpus])
    everywhere = guest.all_vcpus
    faults = [sum(vcpu.core.slat_faults[order] for vcpu in everywhere) for order in range(3)]
    life = guest.life
    values, damon = guest.holdings() | guest.mm.values(), guest.host.reclaimer.damon
    values |= {
        "backed_4k_bytes": backed[0],
        "backed_2m_bytes": backed[1],
        "backed_1g_bytes": backed[2],
        "committed_bytes": guest.config.memory_max if guest.alive else 0,
        "slat_tables_bytes": guest.slat_table_bytes,
        "shadow_tables_bytes": guest.shadow_table_bytes,
        "host_tables_bytes": guest.host_table_bytes,
        "guest_tables_bytes": guest.guest_table_bytes,
        "aligned_huge_bytes": guest.aligned_huge_bytes,
        "stranded_bytes": guest.stranded_bytes,
        "withheld_bytes": guest.channel.withheld_bytes if guest.alive else 0,
        "vmm_overhead_bytes": len(guest.vmm_pages) << 12,
        "guest_faults": sum(sum(vcpu.core.guest_faults) for vcpu in guest.vcpus),
        "page_table_writes": guest.shadow.writes if guest.shadow else 0,
        "shadow_fills": guest.shadow.fills if guest.shadow else 0,
        "slat_faults": sum(faults),
        "slat_faults_4k": faults[0],
        "slat_faults_2m": faults[1],
        "slat_faults_1g": faults[2],
        "held_bytes": guest.held_bytes,
        "locked_bytes": guest.control.vmas.locked_bytes if guest.alive else 0,
        "host_vmas": len(guest.control.vmas) if guest.alive and guest.is_vm else 0,
        "slat_remaps": sum(vcpu.core.remapped for vcpu in guest.vcpus),
        "fault_retries": guest.fault_retries,
        "swap_ins": guest.swap_ins,
        "swap_outs": guest.swap_outs,
        "refaults": guest.refaults,
        "merged_bytes": guest.merged_bytes,
        "tier_bytes": guest.tier_bytes,
        "merges": guest.merges,
        "unmerges": guest.unmerges,
        "host_splits": guest.host_splits,
        "collapses": guest.collapses,
        "direct_compaction_ns": guest.direct_compaction_ns,
        "shootdowns": guest.shootdowns,
        "hint_calls": guest.hint_calls,
        "pages_moved": guest.pages_moved,
        "hint_failures": guest.control.failed.total(),
        "protection_faults": guest.control.protection_faults,
        "kernel_thread_ns": guest.kernel_thread_ns,
        "requests": guest.requests,
        "oom_kills": guest.oom_kills,
        "alive_guests": int(guest.alive),
        "arrived_guests": int(life.arrived_ns is not None),
        "departed_guests": int(life.departed_ns is not None),
        "migrated_in_bytes": life.migrated_in.bytes if life.migrated_in else 0,
        "migrated_out_bytes": life.migrated_out.bytes if life.migrated_out else 0,
        "elapsed_ns": sum(parts[part] for part in ELAPSED_PARTS),
        "ideal_ns": parts["compute_ns"] + parts["think_ns"],
        "translation_error_ns": sum(vcpu.translation_error_ns for vcpu in guest.vcpus),
        "direct_reclaim_ns": sum(vcpu.direct_reclaim_ns for vcpu in everywhere),
        "throttled_ns": guest.throttled_ns,
        "damon_hot_bytes": damon.compare(guest) if damon is not None else 0,
        "damon_probes": guest.damon_probes,
        "damon_hits": guest.damon_hits,
        "fault_stall_ns": sum(parts[part] for part in FAULT_STALL_PARTS),
    }
    values |= {name: mmu[name] for name in MMU_COUNTERS}
    return values | parts


def host_values(host: Host, guests: dict[str, int]) -> dict[str, int]:
    """The host's row: the sum over guests, and what is its own."""
    reclaimer = host.reclaimer
    return guests | {
        "free_bytes": host.free_bytes,
        "hugetlb_free_bytes": host.memory.free_pool_bytes,
        "free_huge_bytes": host.memory.frames.free_blocks * BLOCK,
        "scattered_bytes": host.scattered_bytes,
        "lazy_bytes": host.memory.list_bytes(_core.LAZY_LIST),
        "partial_bytes": host.memory.partial_bytes,
        "writeback_bytes": host.swap.writeback_bytes,
        "memmap_bytes": host.memmap_bytes,
        "reserved_bytes": host.reserved_bytes,
        "swap_used_bytes": host.swap.used_bytes,
        "compressed_pool_bytes": host.swap.pool.held_bytes if host.swap.pool else 0,
        "compressed_bytes": host.swap.pool.original_bytes if host.swap.pool else 0,
        "swap_written_back": host.swap.written_back,
        "swap_worker_ns": host.swap_worker_ns,
        "merged_frames_bytes": host.memory.merged_bytes,
        "merge_metadata_bytes": len(host.ksm.metadata_pages) << 12 if host.ksm else 0,
        "ksm_pages_scanned": host.ksm.pages_scanned if host.ksm else 0,
        "ksm_full_scans": host.ksm.full_scans if host.ksm else 0,
        "ksmd_ns": host.ksm.ksmd_ns if host.ksm else 0,
        "kcompactd_ns": host.compactor.kcompactd_ns,
        "khugepaged_ns": host.khugepaged.cpu_ns if host.khugepaged else 0,
        "pages_migrated": host.compactor.pages_migrated,
        "compaction_failures": host.compactor.failures,
        "kswapd_ns": reclaimer.kswapd_ns,
        "proactive_ns": reclaimer.proactive.spent_ns if reclaimer.proactive else 0,
        "damon_ns": reclaimer.damon.spent_ns if reclaimer.damon else 0,
        "damon_pages": reclaimer.damon.reclaimed_bytes >> 12 if reclaimer.damon else 0,
        "aging_ns": reclaimer.aging_ns,
        "folios_scanned": reclaimer.folios_scanned,
        "folios_reclaimed": reclaimer.folios_reclaimed,
    }


class Sampler:
    """Takes samples into a recorder and keeps what the summary needs of them.

    A guest has rows while it exists, and one more when it has gone; what it has done by then
    stays in the sums of its class.
    """

    def __init__(self, host: Host, guests: list[Guest], recorder: Recorder, warmup: int) -> None:
        self._host = host
        self._recorder = recorder
        self._warmup = warmup
        self._measured: dict[tuple[str, int], tuple[int, int]] = {}
        self._last_ns: int | None = None
        self._weights: dict[tuple[str, int], dict[str, int]] = {}
        self._sampled: list[tuple[str, int]] = []   # who has a row in the last sample
        nothing = dict.fromkeys(guest_values(guests[0]), 0)
        self.totals: dict[tuple[str, int], dict[str, int]] = {}
        self.peaks: dict[tuple[str, int], dict[str, float]] = {}
        self.slowdowns: dict[tuple[str, int], array[float]] = defaultdict(lambda: array("d"))
        self.weighed_ns = 0
        self._pressures = {("", -1): [Gauge(host.pressure, "psi")]}
        self._of: dict[tuple[str, int], list[Guest]] = {("", -1): guests}
        self._here: dict[str, dict[int, Guest]] = {}    # by class, who has not gone for good
        self._gone: dict[str, dict[str, int]] = {}      # by class, what the others have done
        for guest in guests:
            key = guest.class_, guest.index
            self._of.setdefault((guest.class_, -1), []).append(guest)
            self._of[key] = [guest]
            self._here.setdefault(guest.class_, {})[guest.index] = guest
            self._gone.setdefault(guest.class_, nothing)
            self.totals[key], self.peaks[key] = nothing, dict(nothing)

    def sample(self) -> None:
        """Record one row for the host, each class and each guest that exists."""
        now = self._host.env.now
        if now == self._last_ns:
            return
        self._weigh(now)
        rows: dict[tuple[str, int], dict[str, int]] = {}
        sums: dict[str, dict[str, int]] = {}
        for name, here in self._here.items():
            known = [guest for guest in here.values() if guest.life.may_exist(now)]
            of_class = {(name, guest.index): guest_values(guest) for guest in known}
            sums[name] = add_up([self._gone[name], *of_class.values()])
            rows |= of_class
            for guest in known:
                if guest.life.gone.triggered:
                    del here[guest.index]
                    values = of_class[name, guest.index]
                    self._gone[name] = add_up([self._gone[name], values])
        self._row(now, ("", -1), "host", host_values(self._host, add_up(list(sums.values()))))
        for name, values in sums.items():
            self._row(now, (name, -1), "class", values)
        for key, values in rows.items():
            self._row(now, key, "guest", values)
        self._sampled = [("", -1), *((name, -1) for name in sums), *rows]
        self._last_ns = now

    def _gauges(self, key: tuple[str, int], scope: str) -> list[Gauge]:
        """What reads the pressure of the host, or of a guest from its arrival on."""
        if scope == "guest" and key not in self._pressures:
            (guest,) = self._of[key]
            since = guest.life.arrived_ns or 0
            self._pressures[key] = [Gauge(guest.pressure, "psi", since)]
            if guest.is_vm:
                self._pressures[key].append(Gauge(guest.own_pressure, "guest_psi", since))
        return self._pressures.get(key, [])

    def _row(self, now: int, key: tuple[str, int], scope: str, values: dict[str, int]) -> None:
        slowdown = self._slowdown(key)
        pressures: dict[str, float] = {}
        for gauge in self._gauges(key, scope):
            counters, shares = gauge.read(now)
            values |= counters
            pressures |= shares
        self._recorder.append(now, scope, *key, values | pressures | {"slowdown": slowdown})
        self.totals[key] = values
        peaks = self.peaks.setdefault(key, {})
        for name, value in (values | pressures).items():
            if value > peaks.get(name, -1):
                peaks[name] = value
        if slowdown is not None and now > self._warmup and scope == "guest":
            self.slowdowns[key].append(slowdown)

    def _slowdown(self, key: tuple[str, int]) -> float | None:
        chosen = self._of[key]
        elapsed = sum(guest.measured_elapsed_ns for guest in chosen)
        ideal = sum(guest.measured_ideal_ns for guest in chosen)
        before = self._measured.get(key, (0, 0))
        self._measured[key] = (elapsed, ideal)
        if ideal == before[1]:
            return None
        return (elapsed - before[0]) / (ideal - before[1])

    def _weigh(self, now: int) -> None:
        """Let the last sample's gauges count for the time until now, after warm-up."""
        if self._last_ns is None or now <= self._warmup:
            return
        span = now - max(self._last_ns, self._warmup)
        self.weighed_ns += span
        for key in self._sampled:
            values = self.totals[key]
            weights = self._weights.setdefault(key, dict.fromkeys(values, 0))
            for name, value in values.items():
                weights[name] += value * span

    def means(self, key: tuple[str, int], names: Mapping[str, object]) -> dict[str, float]:
        """Time-weighted means of gauges after warm-up: of sizes in whole bytes."""
        weights, over = self._weights.get(key), self.weighed_ns
        if weights is None or over == 0:
            return {name: value for name, value in self.totals[key].items() if name in names}
        return {
            name: weight // over if COLUMN[name].unit == "bytes" else weight / over
            for name, weight in weights.items() if name in names
        }  # fmt: skip
