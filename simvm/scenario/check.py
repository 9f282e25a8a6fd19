"""The rules between the parts of a scenario.

What one value may be stands with its type; here is what must hold between values:
memory that fits, phases in an order that works, files that exist. A rule says which
keys it looked at, so that a mistake in one of them is not reported a second time in
other words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from simvm.errors import InvalidInput
from simvm.hardware import Cpu, load_cpu
from simvm.scenario import (
    check_backing,
    check_channels,
    check_guest_memory,
    check_lifecycle,
    check_migration,
    check_passthrough,
    check_reclaim,
    check_swap,
    check_usage,
)
from simvm.scenario.check_swap import swap_bytes
from simvm.scenario.finding import Finding
from simvm.scenario.models import BUILTIN_TRACE, GuestClass, Phase, Scenario, TracePattern
from simvm.units import GIB, MIB, TIB, format_bytes, format_ns, human_bytes

PAGE: Final = 4096
STRUCT_PAGE_BYTES: Final = 64
"""Per 4 KiB page (Linux, Documentation/mm/vmemmap_dedup.rst)."""

_UPPER_TABLE_PAGES: Final = 16
"""Of a region, above the tables that map 2 MiB each."""

_PROCESS_BITS: Final = 40
"""A process of a container has 1 TiB of addresses, or a quarter of what its table reaches."""

MOST_TAGS: Final = 16_383
"""That TLB entries of the core can have (MAX_TAGS in simvm/core/mmu.pxd): two for a guest, of
itself and of its kernel, and one for each of its processes."""


def findings(scenario: Scenario) -> Iterator[Finding]:
    """Every rule that `scenario` breaks."""
    yield from _time(scenario)
    yield from _host(scenario)
    yield from check_reclaim.findings(scenario)
    yield from check_swap.findings(scenario)
    yield from check_backing.findings(scenario)
    yield from check_lifecycle.findings(scenario)
    yield from check_migration.findings(scenario)
    for name, guest in scenario.guests.items():
        where = f"guest.{name}"
        yield from _guest(scenario, where, guest)
        yield from _phases(where, guest)
        yield from _regions(where, guest)
        yield from check_channels.findings(scenario.host, where, guest)
        yield from check_passthrough.findings(scenario.host, where, guest)
        yield from check_guest_memory.findings(where, guest)
        yield from check_usage.findings(scenario.scenario, where, guest)
    yield from _tags(scenario)
    phases = [phase for guest in scenario.guests.values() for phase in guest.workload]
    working = any(
        phase.pattern or phase.accesses or phase.rate or phase.usage for phase in phases
    )
    if scenario.scenario.duration == "work" and not working:
        yield Finding(
            "scenario.duration", "no phase accesses memory, so there is no work to be done",
            'add a phase with a pattern, or write duration = "60s"', ("guest",),
        )  # fmt: skip


def _tags(scenario: Scenario) -> Iterator[Finding]:
    spaces = {
        name: guest.count * (2 + len({phase.process for phase in guest.workload}))
        for name, guest in scenario.guests.items()
    }
    if sum(spaces.values()) > MOST_TAGS:
        yield Finding(
            f"guest.{max(spaces, key=spaces.__getitem__)}.count",
            f"a host has at most {MOST_TAGS:,} address spaces, two for each guest and one for "
            f"each of its processes, not {sum(spaces.values()):,}",
            "write less", ("guest",),
        )  # fmt: skip


def struct_page_bytes(memory: int) -> int:
    """Bytes of ``struct page`` for `memory`."""
    return memory // PAGE * STRUCT_PAGE_BYTES


def _cpu(scenario: Scenario) -> Cpu | None:
    """The scenario's CPU; None where its mistakes are reported with the host."""
    try:
        return load_cpu(scenario.host.cpu)
    except InvalidInput:
        return None


def _time(scenario: Scenario) -> Iterator[Finding]:
    meta = scenario.scenario
    if meta.quantum > meta.sample_interval:
        yield Finding(
            "scenario.quantum", "must not be longer than sample_interval",
            f'write "{format_ns(meta.sample_interval)}" or less', ("scenario.sample_interval",),
        )  # fmt: skip
    if meta.quantum_max < meta.quantum:
        yield Finding(
            "scenario.quantum_max", "must not be shorter than quantum",
            f'write "{format_ns(meta.quantum)}" or more', ("scenario.quantum",),
        )  # fmt: skip
    for name, guest in scenario.guests.items():
        if meta.fidelity == "sampled" and guest.virtualization == "shadow":
            yield Finding(
                "scenario.fidelity", f"guest.{name} has shadow tables, whose bits are not sampled",
                'write "exact", or virtualization = "nested"', (f"guest.{name}.virtualization",),
            )  # fmt: skip
    if isinstance(meta.duration, int) and meta.warmup >= meta.duration:
        yield Finding(
            "scenario.warmup", "must be shorter than duration",
            f'write less than "{format_ns(meta.duration)}"', ("scenario.duration",),
        )  # fmt: skip


def _host(scenario: Scenario) -> Iterator[Finding]:
    host = scenario.host
    try:
        load_cpu(host.cpu)
    except InvalidInput as error:
        for mistake in error.mistakes:
            inner = f"{mistake.key}: " if mistake.key not in ("", "cpu") else ""
            yield Finding("host.cpu", f"{inner}{mistake.rule}", mistake.fix)
    cpu = _cpu(scenario)
    if host.contiguous and cpu is not None and not cpu.contiguous:
        yield Finding(
            "host.contiguous", f"the TLBs of {cpu.name} do not use the contiguous hint",
            'remove it, or write cpu = "neoverse_n1", whose TLBs hold 64KiB', ("host.cpu",),
        )  # fmt: skip
    if host.memory >= 8 * TIB:
        yield Finding("host.memory", "hosts of less than 8 TiB are modelled", "write less memory")
    yield from _backing(scenario)
    fixed = host.kernel_reserved + struct_page_bytes(host.memory)
    pool = host.hugetlb.size if host.hugetlb else 0
    if fixed + pool >= host.memory:
        yield Finding(
            "host.hugetlb.size" if pool else "host.memory",
            f"struct pages and kernel_reserved ({human_bytes(fixed)})"
            + (f" and the hugetlb pool ({human_bytes(pool)})" if pool else "")
            + f" leave nothing of {human_bytes(host.memory)}",
            "give the host more memory" + (", or a smaller pool" if pool else ""),
            ("host.memory", "host.kernel_reserved", "host.hugetlb"),
        )
    if (host.reclaim.min_free or 0) * 2 >= host.memory - fixed - pool > 0:
        yield Finding(
            "host.reclaim.min_free", "must be less than half of the memory that is left to guests",
            "write less, or leave it out", ("host.memory", "host.kernel_reserved", "host.hugetlb"),
        )  # fmt: skip
    if host.fault_workers != 1 and host.fault_path != "userfaultfd":
        yield Finding(
            "host.fault_workers", "only the path userfaultfd has workers",
            'remove it, or write fault_path = "userfaultfd"', ("host.fault_path",),
        )  # fmt: skip


def _backing(scenario: Scenario) -> Iterator[Finding]:
    host, uses = scenario.host, ("host.backing", "host.page_size", "host.hugetlb")
    page = format_bytes(host.page_size)
    if host.backing != "hugetlb":
        if host.page_size == GIB:
            yield Finding(
                "host.page_size", "only hugetlb backs 1 GiB at once",
                'write backing = "hugetlb" and a pool, or page_size = "2MiB"', uses,
            )  # fmt: skip
    elif host.page_size == PAGE:
        yield Finding(
            "host.page_size", "hugetlb backs whole pages of 2MiB or 1GiB",
            'write page_size = "2MiB" or "1GiB"', uses,
        )  # fmt: skip
    elif host.hugetlb is None:
        yield Finding(
            "host.hugetlb", "backing = \"hugetlb\" needs a pool",
            f'add hugetlb = {{ page_size = "{page}", size = "32GiB" }}', uses,
        )  # fmt: skip
    elif host.hugetlb.page_size != host.page_size:
        yield Finding(
            "host.hugetlb.page_size", "the pool's pages must be of host.page_size",
            f'write page_size = "{page}"', uses,
        )  # fmt: skip
    if host.hugetlb is not None and host.hugetlb.size % host.hugetlb.page_size:
        whole = -(-host.hugetlb.size // host.hugetlb.page_size) * host.hugetlb.page_size
        yield Finding(
            "host.hugetlb.size", "must be whole pages of the pool",
            f'write "{format_bytes(whole)}"', ("host.hugetlb.page_size",),
        )  # fmt: skip


def _guest(scenario: Scenario, where: str, guest: GuestClass) -> Iterator[Finding]:
    host = scenario.host
    swap = swap_bytes(host)
    if guest.memory > host.memory + swap:
        yield Finding(
            f"{where}.memory",
            f"one guest must not have more than the host's memory and swap, "
            f"{human_bytes(host.memory + swap)}",
            f'write "{format_bytes(host.memory + swap)}" or less',
            ("host.memory", "host.swap"),
        )
    pool = host.hugetlb.size if host.hugetlb and host.backing == "hugetlb" else guest.memory
    if guest.memory > pool:
        yield Finding(
            f"{where}.memory", f"one guest must not have more than the pool, {human_bytes(pool)}",
            f'write "{format_bytes(pool)}" or less, or a larger pool',
            ("host.hugetlb", "host.backing"),
        )  # fmt: skip
    cpu = _cpu(scenario)
    reach = _reach(cpu, scenario, guest) if cpu is not None else guest.memory_max
    if guest.memory_max > reach:
        yield Finding(
            f"{where}.memory", f"these table levels serve {human_bytes(reach)} at most",
            "write table_levels = 5 for guest and host, or less memory",
            (f"{where}.table_levels", "host.table_levels", "host.cpu"),
        )  # fmt: skip
    if cpu is not None and not guest.is_vm:
        most = _most_processes(cpu, guest)
        if len({phase.process for phase in guest.workload}) > most:
            yield Finding(
                f"{where}.workload", f"its table has room for {most} processes",
                "write table_levels = 4, or fewer processes", (f"{where}.table_levels", "host.cpu"),
            )  # fmt: skip
    if guest.virtualization == "shadow" and cpu is not None and cpu.tagging == "VMID":
        yield Finding(
            f"{where}.virtualization", "KVM shadows page tables on x86 alone",
            'write virtualization = "nested", or the cpu of an x86 machine', ("host.cpu",),
        )  # fmt: skip


def _reach(cpu: Cpu, scenario: Scenario, guest: GuestClass) -> int:
    """How much memory the tables of a guest and its SLAT can map."""
    bits = cpu.guest_format(guest.table_levels).address_bits - 2  # programs have the lower half
    if guest.is_vm:
        bits = min(bits, cpu.host_format(scenario.host.table_levels).address_bits)
    elif bits < _PROCESS_BITS:
        bits -= 1  # and the gaps between regions
    return 1 << min(bits, 52)


def _most_processes(cpu: Cpu, guest: GuestClass) -> int:
    """How many processes of a container have a part of its table each."""
    bits = cpu.guest_format(guest.table_levels).address_bits
    return (1 << max(bits - _PROCESS_BITS, 2)) - 1


# --- phases -----------------------------------------------------------------------------


def _phases(where: str, guest: GuestClass) -> Iterator[Finding]:
    seen: set[str] = set()
    for phase in guest.workload:
        at = f"{where}.workload.{phase.name}"
        if phase.name in seen:
            yield Finding(
                f"{at}.name", f"two phases have the name {phase.name!r}", "give each its own"
            )
        seen.add(phase.name)
        wrong = check_usage.loop(phase) if phase.paced else _loop(phase)
        for key, rule, fix in (*wrong, *_trace(phase), *_rest(phase)):
            yield Finding(f"{at}.{key}", rule, fix, (at,))
        if phase.threads > guest.vcpus:
            yield Finding(
                f"{at}.threads", f"the guest has {guest.vcpus} vCPUs",
                f"write {guest.vcpus} or less, or raise vcpus", (f"{where}.vcpus",),
            )  # fmt: skip
    widest: dict[str, int] = {}
    for phase in guest.workload:
        widest[phase.task] = max(widest.get(phase.task, 0), phase.threads)
    if len(widest) > 1 and max(widest.values()) <= guest.vcpus < sum(widest.values()):
        yield Finding(
            f"{where}.vcpus",
            f"the tasks {', '.join(widest)} run side by side and need {sum(widest.values())}",
            f"write vcpus = {sum(widest.values())}, or fewer threads", (f"{where}.workload",),
        )  # fmt: skip


_Wrong = tuple[str, str, str]


def _loop(phase: Phase) -> Iterator[_Wrong]:
    """Closed loop, open loop, or no accesses at all."""
    open_keys = ("rate", "accesses_per_request", "duration")
    given = [key for key in open_keys if getattr(phase, key) is not None]
    if phase.pattern is None:
        for key in ("accesses", *open_keys):
            if getattr(phase, key) is not None:
                yield key, "accesses need a pattern", 'add pattern = { kind = "uniform" }'
        idle = phase.allocate is None and phase.free == "none"
        if idle and not (phase.hints_before or phase.hints_after):
            yield "pattern", "the phase does nothing", "add allocate, a pattern, hints, or free"
        return
    if phase.accesses is not None and given:
        fix = f"remove accesses, or {', '.join(given)}"
        yield "accesses", "a phase is a closed loop (accesses) or an open one (rate)", fix
    elif given:
        for key in open_keys:
            if key not in given:
                example = {"rate": '"10k"', "accesses_per_request": "100", "duration": '"10s"'}[key]
                yield key, f"an open loop needs {', '.join(open_keys)}", f"add {key} = {example}"
        if phase.think_time:
            yield "think_time", "belongs to a closed loop", "remove it"
    elif phase.accesses is None and not isinstance(phase.pattern, TracePattern):
        yield "accesses", "is required", 'add accesses = "5M" (or rate, for an open loop)'


def _trace(phase: Phase) -> Iterator[_Wrong]:
    if not isinstance(phase.pattern, TracePattern):
        return
    if phase.allocate is not None:
        yield "allocate", "a trace says itself how large its region is", "remove it"
    if phase.write_fraction:
        yield "write_fraction", "a trace says itself what is written", "remove it"
    if phase.threads != 1:
        yield "threads", "a trace is the order of one thread's accesses", "write threads = 1"
    try:
        trace_region_bytes(phase.pattern.file)
    except InvalidInput as error:
        for mistake in error.mistakes:
            inner = f" ({mistake.key} = {mistake.value})" if mistake.key else ""
            yield "pattern.file", mistake.rule + inner, mistake.fix


def _rest(phase: Phase) -> Iterator[_Wrong]:
    makes = phase.allocate is not None or isinstance(phase.pattern, TracePattern)
    makes |= phase.usage is not None
    if phase.repeat > 1 and makes and phase.free != "all":
        fix = 'write free = "all", or allocate in a phase of its own'
        yield "repeat", "a phase that allocates and is repeated must free all", fix
    if phase.every is not None and phase.repeat == 1:
        yield "every", "means nothing without repeat", "remove it, or write repeat = 2 or more"
    yield from check_usage.interval(phase)


def trace_region_bytes(file: str) -> int:
    """Size of the region that a trace replays in.

    Raises
    ------
    InvalidInput
        There is no such file, or it is no whole trace.
    """
    from simvm.workload.trace import builtin_trace, read_header

    return read_header(builtin_trace() if file == BUILTIN_TRACE else Path(file)).region_bytes


# --- regions ----------------------------------------------------------------------------


def _regions(where: str, guest: GuestClass) -> Iterator[Finding]:
    """Follow the regions through the phases: made before used, and within the guest's memory."""
    uses = (f"{where}.workload", f"{where}.memory", f"{where}.boot", f"{where}.page_size",
            f"{where}.virtualization", f"{where}.swap", f"{where}.hugetlb",
            f"{where}.reclaim")  # fmt: skip
    live: dict[tuple[str, str], int] = {}
    made_by: dict[tuple[str, str], str] = {}
    pages: dict[tuple[str, str], int] = {}
    pooled: set[tuple[str, str]] = set()
    peaks: dict[str, int] = {}
    followed: dict[tuple[str, str], str] = {}
    for phase in guest.workload:
        at, place = f"{where}.workload.{phase.name}", (phase.process, phase.region)
        size = _made(phase)
        if size is not None:
            if place in live:
                yield Finding(
                    f"{at}.region", f"{phase.region!r} is there already",
                    "free it first, or choose another name", uses,
                )  # fmt: skip
            page = pages[place] = check_guest_memory.page_of(guest, phase)
            live[place], made_by[place] = -(-size // page) * page, phase.task
            (pooled.discard if phase.hugetlb is None else pooled.add)(place)
            followed.pop(place, None)
        if place not in live:
            yield Finding(
                f"{at}.region", f"no earlier phase of the process {phase.process!r} allocates "
                f"{phase.region!r}" + (", or it was freed" if place in made_by else ""),
                'add allocate = "1GiB"', uses,
            )  # fmt: skip
            continue
        if place in followed:
            yield Finding(
                f"{at}.region", f"{phase.region!r} follows the series of {followed[place]}, and no "
                "other phase uses it", 'write free = "all" there, or choose another name', uses,
            )  # fmt: skip
            continue
        least = live[place]
        if phase.usage is not None:
            followed[place] = phase.name
            least = (check_usage.extremes(phase.usage) or (least, least))[0]
        if least < PAGE:
            yield Finding(
                f"{at}.usage", "the least that the series uses is less than a page",
                "scale it, or begin where something is used", uses,
            )  # fmt: skip
            continue
        yield from (Finding(f"{at}.{key}", rule, fix, uses) for key, rule, fix in
                    _fits_region(phase, least))  # fmt: skip
        own = {key: bytes_ for key, bytes_ in live.items() if key not in pooled}
        held = sum(bytes_ for key, bytes_ in own.items() if made_by[key] == phase.task)
        peaks[phase.task] = max(peaks.get(phase.task, 0), held)
        if size is not None and sum(peaks.values()) > guest_capacity(guest, own.values()):
            yield _too_much(at, guest, sum(peaks.values()), own.values(), uses)
            return
        yield from _freed(at, phase, pages[place], live, uses)


def _made(phase: Phase) -> int | None:
    """Size of the region that a phase makes; None if it makes none, or none that is known."""
    if isinstance(phase.pattern, TracePattern):
        try:
            return trace_region_bytes(phase.pattern.file)
        except InvalidInput:
            return PAGE  # reported where the trace is checked
    if phase.usage is not None:
        _, most = check_usage.extremes(phase.usage) or (PAGE, PAGE)
        return max(PAGE, most)
    return phase.allocate


def _fits_region(phase: Phase, size: int) -> Iterator[_Wrong]:
    """What a pattern asks of the size of its region."""
    pattern = phase.pattern
    if pattern is None:
        return
    for key in ("stride", "granule"):
        step = getattr(pattern, key, 0)
        if step > size:
            fix = f'write "{format_bytes(size)}" or less'
            yield f"pattern.{key}", f"must not exceed the region, {human_bytes(size)}", fix
    if pattern.kind in ("hot_cold", "drifting") and size < 2 * PAGE:
        yield "pattern.kind", "needs a region of two pages or more", 'allocate "8KiB" or more'
    if pattern.kind in ("sequential", "strided") and size < phase.threads * PAGE:
        yield "threads", "each needs a 4 KiB page of the region", f"write {size // PAGE} or less"


def _freed(
    at: str,
    phase: Phase,
    page: int,
    live: dict[tuple[str, str], int],
    uses: tuple[str, ...],
) -> Iterator[Finding]:
    """Take what the phase frees out of `live`."""
    place = (phase.process, phase.region)
    if phase.free == "all":
        del live[place]
        return
    if phase.free == "none":
        return
    size = int(phase.free) * phase.repeat
    if int(phase.free) % page:
        yield Finding(
            f"{at}.free", f"must be whole guest pages of {format_bytes(page)}",
            f'write "{format_bytes(-(-int(phase.free) // page) * page)}"', uses,
        )  # fmt: skip
    elif size > live[place] or (size == live[place] and phase.repeat > 1):
        yield Finding(
            f"{at}.free", f"frees more than the region's {human_bytes(live[place])}",
            'write free = "all", or less', uses,
        )  # fmt: skip
    elif size == live[place]:
        del live[place]
    else:
        live[place] -= size


def guest_capacity(guest: GuestClass, regions: Iterable[int]) -> int:
    """Bytes that `regions` can have: guest memory without boot, struct pages, pools and tables.

    And the guest's own swap.
    """
    if not guest.is_vm:
        return guest.memory
    kernel = guest.boot + struct_page_bytes(guest.memory_max)
    kernel += check_guest_memory.pools_bytes(guest)
    kernel += (guest.reclaim.min_free or 0) if guest.reclaim is not None else 0
    if guest.page_size == GIB:
        most = guest.memory_max // GIB
        return max(0, most - -(-(kernel + _UPPER_TABLE_PAGES * PAGE) // GIB)) * GIB
    tables = sum((size // (2 * MIB) + _UPPER_TABLE_PAGES) * PAGE for size in regions)
    return max(0, guest.memory_max - kernel - tables) + check_guest_memory.swap_bytes(guest)


def _too_much(
    at: str, guest: GuestClass, needed: int, regions: Iterable[int], uses: tuple[str, ...]
) -> Finding:
    capacity = guest_capacity(guest, regions)
    more = guest.memory_max + needed - capacity
    unit = GIB if guest.page_size == GIB else 2 * MIB
    rule = (
        f"the regions that live together take {human_bytes(needed)}, and {human_bytes(capacity)} "
        f"of the guest's {human_bytes(guest.memory_max)} are left for them"
    )
    if guest.is_vm:
        rule += " beside boot, struct pages and page tables"
        rule += ", with its swap" if check_guest_memory.swap_bytes(guest) else ""
        rule += " (in whole pages of 1 GiB)" if guest.page_size == GIB else ""
    fix = f'allocate less, or write memory = "{format_bytes(-(-more // unit) * unit)}"'
    return Finding(f"{at}.allocate", rule, fix, uses)
