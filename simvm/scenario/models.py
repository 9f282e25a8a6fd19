"""A scenario as frozen, validated data: a host, classes of guests, their workloads.

The models hold integers: sizes in bytes, times in nanoseconds. A key of the TOML
file has the attribute of the same name, but for ``schema`` (`schema_version`),
``guest`` (`guests`) and ``variant`` (`variants`). Each model checks what it can
see by itself; `simvm.scenario.check` holds the rules between them.

Left out, and refused where a file asks for it: several NUMA nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import InitErrorDetails

from simvm import units
from simvm.hardware import format_cost, parse_cost
from simvm.scenario import fields as f
from simvm.scenario.backing import Defrag, Fragmentation, Khugepaged
from simvm.scenario.base import Model, choice
from simvm.scenario.channels import AnyChannel, NoChannelSettings
from simvm.scenario.fields import from_text, mistake, one_of
from simvm.scenario.guest_memory import GuestMemoryKeys
from simvm.scenario.ksm import Ksm
from simvm.scenario.lifecycle import LifecycleKeys
from simvm.scenario.migration import Migration
from simvm.scenario.passthrough import Operations
from simvm.scenario.reclaim import LruReclaim, Memcg, Reclaim
from simvm.scenario.swap import Content, CxlSwap, NoSwap, Swap
from simvm.scenario.usage import Usage
from simvm.units import UnitError

SCHEMA_VERSION: Final = 1

BUILTIN_TRACE: Final = "builtin"
"""What `TracePattern.file` says for the trace that comes with simvm."""

MAX_CLASSES: Final = 1000
MAX_PHASES: Final = 1000
MAX_VARIANTS: Final = 200


# --- patterns ---------------------------------------------------------------------------


class UniformPattern(Model):
    """Every page of the region alike."""

    kind: Literal["uniform"] = "uniform"


class ZipfPattern(Model):
    """The record of rank r with a probability in proportion to r^-exponent."""

    kind: Literal["zipf"] = "zipf"
    exponent: f.Exponent
    granule: f.PageMultiple = 4 * units.KIB
    """Size of a record; an access goes to the first page of one."""
    scatter: f.Flag = True
    """Ranks lie scattered over the region's records; false: hottest first, by address."""


class SequentialPattern(Model):
    """From the region's start to its end, again and again."""

    kind: Literal["sequential"] = "sequential"
    stride: f.Size = 64
    """From one access to the next."""


class StridedPattern(Model):
    """As sequential, with a stride of its own."""

    kind: Literal["strided"] = "strided"
    stride: f.Size


class PointerChasePattern(Model):
    """A random cycle through all granules of the region, each of which names the next."""

    kind: Literal["pointer_chase"] = "pointer_chase"
    granule: f.Size = 4 * units.KIB


class HotColdPattern(Model):
    """A hot part of the region that takes a share of the accesses; uniform within each."""

    kind: Literal["hot_cold"] = "hot_cold"
    hot_fraction: f.Part
    """Hot bytes over all bytes of the region."""
    hot_share: f.Part
    """Accesses to the hot part over all accesses."""


class DriftingPattern(Model):
    """As hot_cold, while the hot part moves through the region."""

    kind: Literal["drifting"] = "drifting"
    hot_fraction: f.Part
    hot_share: f.Part
    drift: f.Drift
    """4 KiB pages that the hot part moves on in 1000 accesses."""


class TracePattern(Model):
    """The accesses of a recorded program, in their order; it says how large the region is."""

    kind: Literal["trace"] = "trace"
    file: f.Text
    """A trace, relative to the file that names it, or "builtin"."""


AnyPattern = (
    UniformPattern
    | ZipfPattern
    | SequentialPattern
    | StridedPattern
    | PointerChasePattern
    | HotColdPattern
    | DriftingPattern
    | TracePattern
)

LATER_PATTERNS: Final = ("mix",)
"""Patterns that are not modelled yet."""

Pattern = Annotated[
    AnyPattern,
    Field(discriminator="kind"),
    choice("kind", *get_args(AnyPattern), later=LATER_PATTERNS),
]


# --- workload ---------------------------------------------------------------------------


class Phase(Model):
    """One phase of a task: allocate a region, access it, free it."""

    name: f.Name
    """Its address in paths; by default the region, made unique."""
    region: f.Name
    """The name under which the host sees this memory."""
    task: f.Name = "main"
    """Phases of one task run one after another, tasks side by side."""
    process: f.Name = "app"
    """The address space."""
    threads: f.Vcpus = 1
    """vCPUs it runs on."""
    allocate: f.PageMultiple | None = None
    """Size of the region that this phase makes; without it, the region is an earlier phase's."""
    hugetlb: f.HugePageSize | None = None
    """The region that it makes takes huge pages from the guest's pool of this size."""
    usage: Usage | None = None
    """The phase makes a region whose size follows a series; see below."""
    pattern: Pattern | None = None
    accesses: f.Count | None = None
    """Closed loop: accesses of one guest, split over its threads."""
    rate: f.Count | None = None
    """Open loop: requests that arrive in a second, in each guest."""
    accesses_per_request: f.Count | None = None
    access_rate: f.Count | None = None
    """Paced closed loop: accesses in a second of one guest while it is fully active."""
    interval: f.Duration | None = None
    """Paced: each thread does its share of an interval's accesses, then rests until its end."""
    duration: f.Duration | None = None
    """Open loop and paced: for how long requests arrive, or accesses are due."""
    cycles_per_access: f.Cycles = 20
    """Compute and data latency of an access when its translation is free."""
    walk_exposed: f.Share = 1.0
    """Share of the walk cycles that out-of-order execution does not hide; `walkers` bound it."""
    write_fraction: f.Share = 0.0
    think_time: f.Time = 0
    """Closed loop: a pause that belongs to each access."""
    measure: f.Flag = True
    """Whether the phase counts in the headline slowdown."""
    free: f.Free = "none"
    """What the guest frees at the phase's end: none, all, or a size, from the region's end."""
    hints_before: Operations = ()
    """Passthrough: what the guest asks for the region's memory as the phase begins, in order."""
    hints_after: Operations = ()
    """The same after the accesses and before `free`."""
    repeat: f.Repeats = 1
    every: f.Duration | None = None
    """From the start of one repetition to the start of the next."""

    @property
    def open_loop(self) -> bool:
        """Whether requests arrive by themselves."""
        return self.rate is not None

    @property
    def paced(self) -> bool:
        """Whether it keeps to the clock: its accesses, its region, or both."""
        return self.access_rate is not None or self.usage is not None


# --- guests -----------------------------------------------------------------------------


class GuestClass(GuestMemoryKeys, LifecycleKeys):
    """A class of guests, all alike."""

    count: f.Guests = 1
    """How many there are in all; with `arrivals`, how many arrive at most."""
    memory: f.BlockMultiple
    memory_max: f.BlockMultiple
    """What virtio_mem can plug the guest up to; by default memory."""
    vcpus: f.Vcpus = 1
    boot: f.PageMultipleOrZero = 0
    """Backed by the boot itself, beside struct pages. 0 leaves it out, which errs low."""
    vmm_overhead: f.PageMultipleOrZero = 0
    """Memory of the VMM of each guest. 0 leaves it out, which errs low."""
    start: f.Time = 0
    stop: f.Duration | None = None
    """When all guests of this class depart, and no more arrive; by default when the run ends."""
    stagger: f.Time = 0
    """Guest i starts i times this later."""
    page_size: f.PageSize = 4 * units.KIB
    zeroing: Annotated[Literal["guest", "none"], one_of("guest", "none")] = "guest"
    """guest: the guest zeroes what it allocates; none: it trusts the host to."""
    virtualization: Annotated[
        Literal["nested", "shadow", "none"], one_of("nested", "shadow", "none")
    ] = "nested"
    """shadow: no SLAT, the host shadows guest tables; none: a container on the same host."""
    table_levels: f.Levels | None = None
    """Levels of the guest's page tables (of a container: of its page table)."""
    channel: AnyChannel = NoChannelSettings()
    content: Content = Content()
    memcg: Memcg | None = None
    mergeable: f.Flag = False
    """Whether `host.ksm` may merge the pages of these guests, as under MADV_MERGEABLE."""
    workload: tuple[Phase, ...] = Field(default=(), max_length=MAX_PHASES)

    @property
    def is_vm(self) -> bool:
        """Whether guests have memory, page tables and a kernel of their own."""
        return self.virtualization != "none"

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        filled = dict(value)
        if "memory_max" not in filled and "memory" in filled:
            filled["memory_max"] = filled["memory"]
        if isinstance(filled.get("workload"), list | tuple):
            filled["workload"] = with_names(filled["workload"])
        return filled


def with_names(phases: Any) -> list[Any]:
    """Raw phases with a name each: their own, else the region, else with -2, -3 and so on."""
    taken = {str(phase.get("name")) for phase in phases if isinstance(phase, Mapping)}
    last: dict[str, int] = {}
    named: list[Any] = []
    for phase in phases:
        if isinstance(phase, Mapping) and "name" not in phase and "region" in phase:
            region = name = str(phase["region"])
            number = last.get(region, 1)
            while name in taken:
                number += 1
                name = f"{region[:58]}-{number}"
            taken.add(name)
            last[region] = number
            phase = {"name": name, **phase}
        named.append(phase)
    return named


# --- host -------------------------------------------------------------------------------


class Hugetlb(Model):
    """The pool of huge pages set aside at boot."""

    page_size: f.HugePageSize
    size: f.BlockMultiple


def _check_costs(value: Any, info: ValidationInfo) -> Any:
    """Costs by name, each in the unit of its parameter; all mistakes at once."""
    if not isinstance(value, Mapping):
        raise mistake("costs is a table", 'write { slat_fault_2m = "6us" }')
    costs: dict[str, int] = {}
    errors: list[InitErrorDetails] = []
    for name, given in value.items():
        try:
            costs[name] = parse_cost(name, given, text=from_text(info))
        except UnitError as error:
            errors.append({"type": mistake(error.rule, error.fix), "loc": (name,), "input": given})
    if errors:
        raise ValidationError.from_exception_data("costs", errors)
    return costs


def _show_costs(value: dict[str, int]) -> dict[str, Any]:
    return {name: format_cost(name, cost) for name, cost in value.items()}


Costs = Annotated[
    dict[str, int],
    BeforeValidator(_check_costs),
    PlainSerializer(_show_costs, return_type=dict[str, Any], when_used="json"),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": ["string", "integer"]}}),
]


def _check_schema(value: Any) -> Any:
    if isinstance(value, bool) or value != SCHEMA_VERSION:
        rule = f"this simvm reads schema {SCHEMA_VERSION}"
        raise mistake(rule, f"write schema = {SCHEMA_VERSION}, and the file for it")
    return value


class Host(Model):
    """The machine."""

    cpu: f.Text
    """A known parameter set, or the path of a TOML file of the same form."""
    cores: f.Cores
    memory: f.BlockMultiple
    page_size: f.PageSize = 4 * units.KIB
    """What one SLAT fault backs."""
    backing: Annotated[
        Literal["anon", "memfd", "hugetlb"], one_of("anon", "memfd", "hugetlb")
    ] = "anon"
    fault_path: Annotated[
        Literal["kernel", "userfaultfd", "exit_to_userspace"],
        one_of("kernel", "userfaultfd", "exit_to_userspace"),
    ] = "kernel"
    fault_workers: f.Workers = 1
    """Threads behind the queue of userfaultfd."""
    table_levels: f.Levels | None = None
    """Levels of the SLAT."""
    contiguous: f.Flag = False
    """Whether sixteen pages of 4 KiB in a row may be one TLB entry: Arm's contiguous hint."""
    tagged_tlb: f.Flag = True
    """TLB entries bear their guest's tag (VPID, ASID, VMID); false: each VM entry drops all."""
    invalidation: Annotated[Literal["guest", "range"], one_of("guest", "range")] = "guest"
    """What a change of the SLAT drops: all of the guest, as on x86, or the range, as newer Arm."""
    reclaim: Reclaim = LruReclaim()
    swap: Swap = NoSwap()
    ksm: Ksm | None = None
    migration: Migration = Migration()
    hugetlb: Hugetlb | None = None
    defrag: Defrag = "never"
    """What a fault of 2 MiB does when no block is free: back 4 KiB, compact, or wake kcompactd."""
    khugepaged: Khugepaged | None = None
    fragmentation: Fragmentation | None = None
    max_map_count: f.Maps = 65_530
    """Ranges (VMAs) that a VMM's mapping may have; Linux vm.max_map_count."""
    kernel_reserved: f.PageMultipleOrZero = 256 * units.MIB
    """Memory of the host's kernel and services beside struct pages; a rough figure (0 to 2 GiB)."""
    costs: Costs = Field(default_factory=dict)
    """Cost parameters that differ from the shipped ones, by name."""

    @property
    def tier_bytes(self) -> int:
        """Slower memory beside RAM whose pages guests use where they lie."""
        in_place = isinstance(self.swap, CxlSwap) and self.swap.access == "in_place"
        return self.swap.size if in_place and isinstance(self.swap, CxlSwap) else 0

    @property
    def exact_flushes(self) -> bool:
        """Whether TLB entries must know their guest-physical address: ksmd clears single D bits."""
        return self.invalidation == "range" or self.ksm is not None


# --- the whole --------------------------------------------------------------------------


class Meta(Model):
    """What is asked, for how long, and how exactly."""

    name: f.Name
    question: f.Text = ""
    duration: f.WorkOrDuration = "work"
    """"work": until the closed-loop work is done; or a simulated time."""
    warmup: f.Time = 0
    """Left out of means and percentiles."""
    seed: f.Seed = 1
    fidelity: Annotated[Literal["exact", "sampled"], one_of("exact", "sampled")] = "exact"
    """exact: every access is translated; sampled: windows of accesses are, the rest is drawn."""
    quantum: f.Duration = 20 * units.US
    """How far a vCPU may run ahead of the clock; when sampled, at least."""
    quantum_max: f.Duration = units.SECOND
    """Sampled: the quantum grows up to this while little memory is taken from the guest."""
    sample_interval: f.Duration = 10 * units.MS
    train: f.Train = 64
    """Faults in a row that one vCPU may take as one request."""
    train_service: f.Duration = 250 * units.US
    """A train of faults also ends after this much service."""


class Scenario(Model):
    """A host, its guests, their work, and the variants to compare."""

    schema_version: Annotated[Literal[1], BeforeValidator(_check_schema)] = Field(alias="schema")
    scenario: Meta
    host: Host
    guests: dict[f.Name, GuestClass] = Field(alias="guest", min_length=1, max_length=MAX_CLASSES)
    variants: dict[f.Name, dict[str, Any]] = Field(
        default_factory=dict, alias="variant", max_length=MAX_VARIANTS
    )
    """By name, the keys that differ, each a path such as guest.web.page_size."""
    expect: dict[str, dict[str, f.Expectation]] = Field(default_factory=dict)
    """By variant ("base" for the base), conditions on the summary, such as "< 1.3"."""

    @model_validator(mode="before")
    @classmethod
    def _group(cls, value: Any) -> Any:
        """Expectations of the base stand beside the tables of the variants."""
        if not isinstance(value, Mapping) or not isinstance(value.get("expect"), Mapping):
            return value
        base = {k: v for k, v in value["expect"].items() if not isinstance(v, Mapping)}
        others = {k: v for k, v in value["expect"].items() if isinstance(v, Mapping)}
        if base:
            others["base"] = {**base, **others.get("base", {})}
        return {**value, "expect": others}
