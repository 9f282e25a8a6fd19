"""The summary of a run: totals, peaks, means, percentiles and phases, by the columns' names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from simvm.columns import COUNTER_NAMES, GAUGE_NAMES, PRESSURE_NAMES
from simvm.model.host_view import hint_summary, host_view, is_named
from simvm.model.refaults import RefaultDistances
from simvm.model.returns import means
from simvm.model.tasks import PhaseRecord, Task, add_up
from simvm.results import SCHEMA_VERSION, percentiles
from simvm.units import format_bytes

if TYPE_CHECKING:
    from simvm.model.guest import Guest
    from simvm.model.host import Host
    from simvm.model.sampling import Sampler
    from simvm.scenario import Scenario

GAUGES = dict.fromkeys(GAUGE_NAMES)
PEAKED = frozenset((*GAUGE_NAMES, *PRESSURE_NAMES))
HOST_PRESSURES = ("psi_some", "psi_full")
PRESSURES = (*HOST_PRESSURES, "guest_psi_some", "guest_psi_full")
WALK_COUNTERS = ("accesses", "tlb_misses", "walks", "walk_loads", "walk_cycles")


def ratios(records: Iterable[PhaseRecord]) -> dict[str, float | None]:
    """Slowdown and what a walk costs, over measured phases (all, where none is measured)."""
    chosen = list(records)
    measured = [record for record in chosen if record.phase.measure] or chosen
    if not measured:
        return dict.fromkeys(("loads_per_walk", "cycles_per_walk", "tlb_misses_per_kaccess"))
    sums = add_up([{name: each.counters[name] for name in WALK_COUNTERS} for each in measured])
    walks, accesses = sums["walks"], sums["accesses"]
    return {
        "loads_per_walk": sums["walk_loads"] / walks if walks else None,
        "cycles_per_walk": sums["walk_cycles"] / walks if walks else None,
        "tlb_misses_per_kaccess": 1000 * sums["tlb_misses"] / accesses if accesses else None,
    }


def of_phases(records: Iterable[PhaseRecord]) -> dict[str, Any]:
    """What phases came to: `ratios`, and what came back of the memory that they freed."""
    chosen = list(records)
    return ratios(chosen) | means(record.frees for record in chosen)


def slowdown(guests: Iterable[Guest]) -> float | None:
    """Elapsed over ideal of measured phases after warm-up."""
    chosen = list(guests)
    ideal = sum(guest.measured_ideal_ns for guest in chosen)
    return sum(guest.measured_elapsed_ns for guest in chosen) / ideal if ideal else None


def pressure(
    names: Iterable[str], totals: list[dict[str, int]], simulated_ns: int
) -> dict[str, float | None]:
    """Shares of the run under memory pressure, the mean over those that know it."""
    shares: dict[str, float | None] = {}
    for name in names:
        known = [each[f"{name}_ns"] for each in totals if f"{name}_ns" in each]
        whole = len(known) * simulated_ns
        shares[name] = sum(known) / whole if whole else None
    return shares


def distances(guests: Iterable[Guest]) -> dict[str, Any]:
    """How far back pages were reclaimed that came back."""
    whole = RefaultDistances.sum(guest.refault_distances for guest in guests)
    return {"refault_distance": whole.summary()}


def phase_summary(record: PhaseRecord) -> dict[str, Any]:
    phase = record.phase
    summary: dict[str, Any] = {
        "name": phase.name,
        "repetition": record.repetition,
        "task": phase.task,
        "process": phase.process,
        "region": phase.region,
        "measure": phase.measure,
        "start_ns": record.start_ns,
        "end_ns": record.end_ns,
        "elapsed_ns": record.elapsed_ns,
        "ideal_ns": record.ideal_ns,
        "slowdown": record.elapsed_ns / record.ideal_ns if record.ideal_ns else None,
        "accesses": record.accesses,
        "parts": record.parts,
        "counters": record.counters,
        "given_back": record.frees.as_dict(),
    }
    if phase.paced:
        summary["late_ns"] = record.late_ns
    if phase.open_loop:
        latencies = record.latencies_ns
        ranked = percentiles(latencies)
        summary["requests"] = len(latencies)
        summary["latency_ns"] = None
        if ranked is not None:
            summary["latency_ns"] = ranked | {"mean": sum(latencies) / len(latencies)}
            summary["service_ns"] = record.elapsed_ns / len(latencies)
    return summary


def region_summaries(guest: Guest) -> list[dict[str, Any]]:
    """Who holds host memory: the guest's named regions. The host sees names it was told."""
    rows = []
    for region in guest.regions.values():
        table = guest.processes[region.process].table
        held = region.core.backing_of(guest.backing, table)
        rows.append({
            "name": region.name,
            "process": region.process,
            "named_to_host": is_named(guest, region),
            "bytes": region.core.size,
            "touched_bytes": region.touched_bytes,
            "backed_4k_bytes": held[0],
            "backed_2m_bytes": held[1],
            "backed_1g_bytes": held[2],
            "swapped_bytes": held[3],
        })  # fmt: skip
    return rows


class Summary:
    """Puts a run's summary together."""

    def __init__(
        self, scenario: Scenario, host: Host, sampler: Sampler, tasks: dict[int, list[Task]]
    ) -> None:
        self._scenario = scenario
        self._host = host
        self._sampler = sampler
        self._tasks = tasks

    def build(
        self, guests: list[Guest], *, seed: int, digest: str, partial: bool
    ) -> dict[str, Any]:
        """The summary of the run as it stands."""
        meta = self._scenario.scenario
        return {
            "schema_version": SCHEMA_VERSION,
            "scenario": {
                "name": meta.name,
                "question": meta.question,
                "seed": seed,
                "digest": digest,
                "simulated_ns": self._host.env.now,
                "partial": partial,
            },
            "host": self._host_summary(guests),
            "classes": {
                name: self._class_summary(name, [g for g in guests if g.class_ == name])
                for name in self._scenario.guests
            },
            "guests": [self._guest_summary(guest) for guest in guests],
        }

    def _values(self, key: tuple[str, int], peaks: dict[str, int]) -> dict[str, Any]:
        totals = self._sampler.totals[key]
        return {
            "totals": {name: totals[name] for name in COUNTER_NAMES if name in totals},
            "peaks": {
                name: max(peak, peaks.get(name, 0))
                for name, peak in self._sampler.peaks[key].items() if name in PEAKED
            },
            "means": self._sampler.means(key, GAUGES),
            "final": {name: totals[name] for name in GAUGE_NAMES if name in totals},
        }  # fmt: skip

    def _memory(self, guests: list[Guest]) -> dict[str, Any]:
        """Pressure and refault distances of guests."""
        totals = [self._sampler.totals[guest.class_, guest.index] for guest in guests]
        return pressure(PRESSURES, totals, self._host.env.now) | distances(guests)

    def _records(self, guests: Iterable[Guest]) -> list[PhaseRecord]:
        return [
            record
            for guest in guests for task in self._tasks[guest.owner] for record in task.records
        ]  # fmt: skip

    def _host_summary(self, guests: list[Guest]) -> dict[str, Any]:
        host = self._host
        return {
            "memory_bytes": host.settings.memory,
            "page_size": format_bytes(host.settings.page_size),
            "backing": host.settings.backing,
            "oom_kills": host.oom_kills,
            "slowdown": slowdown(guests),
        } | (
            of_phases(self._records(guests))
            | self._values(("", -1), host.peaks[""])
            | pressure(HOST_PRESSURES, [self._sampler.totals["", -1]], host.env.now)
            | distances(guests)
        )

    def _class_summary(self, name: str, guests: list[Guest]) -> dict[str, Any]:
        config = self._scenario.guests[name]
        intervals = [self._sampler.slowdowns[name, guest.index] for guest in guests]
        return {
            "virtualization": config.virtualization,
            "page_size": format_bytes(config.page_size) if config.is_vm else None,
            "zeroing": config.zeroing if config.is_vm else None,
            "channel": config.channel.kind if config.is_vm else None,
            "count": config.count,
            "slowdown": slowdown(guests),
            "slowdown_percentiles": percentiles(np.concatenate(intervals)),
        } | (
            of_phases(self._records(guests))
            | self._values((name, -1), self._host.peaks[name])
            | self._memory(guests)
        )

    def _guest_summary(self, guest: Guest) -> dict[str, Any]:
        records = self._records([guest])
        intervals = self._sampler.slowdowns[guest.class_, guest.index]
        return {
            "class": guest.class_,
            "guest": guest.index,
            "killed": guest.failure is not None,
            "failure": guest.failure,
            "life": guest.life.summary(),
            "slowdown": slowdown([guest]),
            "slowdown_percentiles": percentiles(intervals),
            "stream_digest": guest.stream_digest.hexdigest(),
            "elapsed": add_up([vcpu.account.parts() for vcpu in guest.vcpus]),
            "phases": [phase_summary(record) for record in records],
            "regions": region_summaries(guest),
            "host_view": host_view(guest),
            "hints": hint_summary(guest),
        } | (
            of_phases(records)
            | self._values((guest.class_, guest.index), guest.peaks)
            | self._memory([guest])
        )
