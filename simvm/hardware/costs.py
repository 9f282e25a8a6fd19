"""What software costs, host and guest: nanoseconds, and the figures of the swap device.

The shipped set is ``data/costs.toml``; a scenario may override values by name.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.resources import files
from typing import Any, Final

from simvm import units
from simvm.errors import InvalidInput, did_you_mean
from simvm.hardware.figures import FigureReader, Parameter, Source, parse_toml
from simvm.units import UnitError

COSTS_FILE: Final = "costs.toml"

_MAX_COST: Final = 1 << 60


@dataclass(frozen=True)
class Costs:
    """The costs a run uses. A name ends in its unit; the file's names have none.

    `parameters` holds each as the file states it, with its source, before overrides.
    """

    slat_fault_4k_ns: int
    """A SLAT fault that maps 4 KiB, without zeroing."""
    slat_fault_2m_ns: int
    slat_fault_1g_ns: int
    host_fault_ns: int
    """A page fault of a container, without zeroing."""
    guest_fault_ns: int
    """A page fault that the guest's kernel serves, without zeroing."""
    guest_free_ns: int
    """A 4 KiB page that the guest's kernel unmaps and frees, where that takes time."""
    page_table_write_ns: int
    """Shadow paging: a trapped write of a guest page-table entry."""
    shadow_fill_ns: int
    """Shadow paging: an exit on a missing shadow entry, beside what it backs."""
    userfaultfd_extra_ns: int
    """What handling by a userfaultfd thread adds to a fault, under the lock of its queue."""
    userfaultfd_waiter_ns: int
    """What each other fault that waits adds to that."""
    exit_to_userspace_extra_ns: int
    """What installing by the vCPU thread itself, in user space, adds to a fault."""
    line_transfer_ns: int
    """A cache line comes from the core of another vCPU, on average."""
    zone_lock_hold_ns: int
    mmu_lock_hold_ns: int
    zap_4k_ns: int
    """Removing a 4 KiB entry and releasing its page, without the shootdown."""
    zap_2m_ns: int
    shootdown_base_ns: int
    """A TLB shootdown, for its initiator; each receiver adds `shootdown_per_receiver_ns`."""
    shootdown_per_receiver_ns: int
    shootdown_receive_ns: int
    """The interruption of a vCPU that receives one."""
    reclaim_scan_ns: int
    """Looking at one folio."""
    age_entry_ns: int
    """A walk for accessed bits: each leaf, and each page table that it comes to."""
    age_table_ns: int
    swap_fault_ns: int
    """CPU time of a major fault, beside the device."""
    thp_split_ns: int
    thp_collapse_ns: int
    """Joining 4 KiB pages into a huge one, without copy, zeroing and shootdown."""
    khugepaged_scan_ns: int
    """Looking at the page-table entries of one range."""
    compact_scan_ns: int
    """Looking at one block."""
    copy_bandwidth_bytes_per_s: int
    """At which one core copies pages."""
    hint_call_ns: int
    """One call over the channel, guest and VMM, beside what it makes the host do."""
    hint_range_ns: int
    """Each further range of a call that has several."""
    vma_change_ns: int
    """Changing one VMA of the VMM: finding, splitting or merging it, under the mmap lock."""
    unmap_entry_ns: int
    """Removing one SLAT entry whose page stays."""
    balloon_inflate_4k_ns: int
    """A page taken by a balloon, guest and VMM, without the zap."""
    balloon_inflate_2m_ns: int
    balloon_deflate_4k_ns: int
    balloon_deflate_2m_ns: int
    virtio_mem_unplug_ns: int
    """For 2 MiB."""
    virtio_mem_plug_ns: int
    shared_reclaim_ns: int
    """A free 2 MiB frame, taken through a shared allocator, without the zap."""
    shared_return_ns: int
    shared_scan_ns: int
    """Looking at the state of a frame."""
    page_migration_ns: int
    """Moving a page of 4 KiB or 2 MiB, beside copying it."""
    report_message_ns: int
    """A message of free page reporting, beside its blocks: exit, VMM, interrupt."""
    report_block_ns: int
    """A free block in such a message, without the zap."""
    context_switch_ns: int
    timeslice_ns: int
    ksm_scan_ns: int
    """Same-page merging: looking at one page, its checksum and tree searches included."""
    ksm_merge_ns: int
    """Same-page merging: comparing, write-protecting and replacing a page."""
    cxl_extra_ns: int
    """What an access that misses the caches takes longer in CXL memory than in RAM."""
    migrate_4k_ns: int
    """Moving a page to another node: unmapping, copying, mapping."""
    zram_lz4_ns: int
    """Compressing a 4 KiB page, or decompressing it, in the mean."""
    zram_lz4_p99_ns: int
    zram_lzo_rle_ns: int
    zram_lzo_rle_p99_ns: int
    zram_zstd_ns: int
    zram_zstd_p99_ns: int
    nvme_latency_ns: int
    nvme_latency_p99_ns: int
    nvme_parallelism: int
    """Requests at once."""
    nvme_bandwidth_bytes_per_s: int
    parameters: Mapping[str, Parameter] = field(default_factory=dict, repr=False, compare=False)


_SUFFIX: Final = {"ns": "_ns", "requests": "", "B/s": "_bytes_per_s"}


@functools.cache
def _shipped() -> FigureReader:
    data = files("simvm.hardware").joinpath("data", COSTS_FILE).read_bytes()
    tree = parse_toml(data, COSTS_FILE)
    reader = FigureReader(COSTS_FILE, tree.get("source", {}))
    for name, table in tree["costs"].items():
        unit = table.get("unit")
        reader.figure(name, table, unit if unit in _SUFFIX else "ns", low=0)
    if reader.mistakes:
        raise InvalidInput(reader.mistakes)
    return reader


def shipped_costs() -> dict[str, Parameter]:
    """Every cost of the shipped set, by its name in the file."""
    return _shipped().parameters


def cost_sources() -> dict[str, Source]:
    """The sources of the shipped set, by their keys."""
    return _shipped().sources


def cost_names() -> list[str]:
    """The names of all costs."""
    return list(shipped_costs())


def parse_cost(name: str, value: Any, *, text: bool = True) -> int:
    """The integer that `value` gives the cost `name`, in the unit of that cost.

    A time is written ``"6us"``, a bandwidth ``"2GiB"`` (a second), a number of requests plain.
    Unless `text`, an integer will do for all.

    Raises
    ------
    UnitError
        There is no such cost, or `value` is not one.
    """
    parameters = shipped_costs()
    shown = str(value)[:60] if not isinstance(value, int) or abs(value) <= _MAX_COST else "huge"
    if name not in parameters:
        raise UnitError(shown, "no such cost", did_you_mean(name, parameters))
    unit = parameters[name].unit
    example = {"ns": '"6us"', "requests": "32", "B/s": '"2GiB"'}[unit]
    if isinstance(value, str):
        parse = {"ns": units.parse_ns, "requests": units.parse_count, "B/s": units.parse_bytes}
        number = parse[unit](value)
    elif isinstance(value, int) and not isinstance(value, bool):
        if text and unit != "requests":
            raise UnitError(shown, "has no unit", f"such as {example}")
        number = value
    else:
        raise UnitError(shown, f"must not be of the type {type(value).__name__}", example)
    least = 0 if unit == "ns" else 1
    if not least <= number <= _MAX_COST:
        raise UnitError(shown, f"must be {least} or more, and at most 2^60", f"such as {example}")
    return number


def format_cost(name: str, value: int) -> str | int:
    """What :func:`parse_cost` reads as `value`."""
    unit = shipped_costs()[name].unit
    if unit == "requests":
        return value
    return units.format_ns(value) if unit == "ns" else units.format_bytes(value)


def load_costs(overrides: Mapping[str, int] | None = None) -> Costs:
    """The shipped costs, with `overrides` by name, in the unit of each cost.

    Raises
    ------
    UnitError
        An override names no cost, or is out of range.
    """
    parameters = shipped_costs()
    values = {name: int(parameter.value) for name, parameter in parameters.items()}
    for name, value in (overrides or {}).items():
        values[name] = parse_cost(name, value, text=False)
    return Costs(
        **{name + _SUFFIX[parameters[name].unit]: value for name, value in values.items()},
        parameters=dict(parameters),
    )


COST_FIELDS: Final = tuple(item.name for item in fields(Costs) if item.name != "parameters")
