"""The rules about what a guest's own kernel does with its memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from simvm.scenario.finding import Finding
from simvm.scenario.guest_memory import GuestMemoryKeys
from simvm.scenario.swap import NoSwap
from simvm.units import GIB, MIB, format_bytes, format_ns, human_bytes

if TYPE_CHECKING:
    from simvm.scenario.models import GuestClass, Phase

PAGE: Final = 4096
STRUCT_PAGE_BYTES: Final = 64


def swap_bytes(guest: GuestClass) -> int:
    """What the guest's own swap device holds when it is full."""
    return 0 if isinstance(guest.swap, NoSwap) else guest.swap.size


def pools_bytes(guest: GuestClass) -> int:
    """What the pools take of the guest's memory."""
    return guest.pool_bytes(2 * MIB) + guest.pool_bytes(GIB)


def page_of(guest: GuestClass, phase: Phase | None) -> int:
    """The size that a region of the guest is a multiple of."""
    if not guest.is_vm:
        return PAGE
    return (phase.hugetlb if phase is not None else None) or guest.page_size


def findings(where: str, guest: GuestClass) -> Iterator[Finding]:
    """The rules that the class of guests at `where` breaks."""
    if not guest.is_vm:
        yield from _container(where, guest)
        return
    if not isinstance(guest.swap, NoSwap) and not guest.swap.size:
        yield Finding(
            f"{where}.swap.size", "a swap device needs a size", 'add size = "1GiB"',
            (f"{where}.swap.device",),
        )  # fmt: skip
    if guest.khugepaged is not None and guest.page_size != 2 * MIB:
        yield Finding(
            f"{where}.khugepaged", "it joins pages of regions that may have pages of 2 MiB",
            'write page_size = "2MiB", or remove it', (f"{where}.page_size",),
        )  # fmt: skip
    aged = guest.fragmentation
    if aged is not None and aged.movable + aged.unmovable > 1:
        yield Finding(
            f"{where}.fragmentation.movable", "a block is of one kind: the shares exceed 1",
            f"write {max(0.0, 1 - aged.unmovable):g} or less", (f"{where}.fragmentation",),
        )  # fmt: skip
    if guest.per_cpu_lists and guest.channel.kind == "virtio_mem":
        yield Finding(
            f"{where}.per_cpu_lists", "unplugging pages that are on lists is not modelled",
            "remove it, or choose another channel", (f"{where}.channel.kind",),
        )  # fmt: skip
    if guest.per_cpu_lists and guest.khugepaged is not None and guest.khugepaged.defrag:
        yield Finding(
            f"{where}.per_cpu_lists", "compaction of a guest with lists is not modelled",
            "remove it, or write khugepaged.defrag = false", (f"{where}.khugepaged.defrag",),
        )  # fmt: skip
    yield from _short_processes(where, guest)
    yield from _pools(where, guest)
    for phase in guest.workload:
        at = f"{where}.workload.{phase.name}.hugetlb"
        if phase.hugetlb is None:
            continue
        page, least = format_bytes(phase.hugetlb), phase.allocate or phase.hugetlb
        if phase.allocate is None and phase.usage is None:
            yield Finding(at, "belongs to a phase that allocates", "remove it", (at,))
        elif not guest.pool_bytes(phase.hugetlb):
            key = "size_2m" if phase.hugetlb == 2 * MIB else "size_1g"
            yield Finding(
                at, f"the guest has no pool of {page} pages",
                f'add hugetlb = {{ {key} = "{format_bytes(-(-least // GIB) * GIB)}" }}',
                (f"{where}.hugetlb",),
            )  # fmt: skip


def _short_processes(where: str, guest: GuestClass) -> Iterator[Finding]:
    short = guest.short_processes
    if short is None:
        return
    for at, size in short.schedule.items():
        if size % (short.processes * PAGE):
            least = short.processes * PAGE
            yield Finding(
                f"{where}.short_processes.schedule.{format_ns(at)}",
                f"{short.processes} processes take equal parts, in whole pages of 4 KiB",
                f'write "{format_bytes(-(-size // least) * least)}"',
                (f"{where}.short_processes.processes",),
            )  # fmt: skip


def _container(where: str, guest: GuestClass) -> Iterator[Finding]:
    for key, field in GuestMemoryKeys.model_fields.items():
        if getattr(guest, key) != field.default:
            yield Finding(
                f"{where}.{key}", "a container has no kernel, and no memory of its own",
                "remove it", (f"{where}.virtualization",),
            )  # fmt: skip


def _pools(where: str, guest: GuestClass) -> Iterator[Finding]:
    if guest.hugetlb is None:
        return
    for key, page in (("size_2m", 2 * MIB), ("size_1g", GIB)):
        size = guest.pool_bytes(page)
        if size % page:
            yield Finding(
                f"{where}.hugetlb.{key}", "must be whole pages of the pool",
                f'write "{format_bytes(-(-size // page) * page)}"',
            )  # fmt: skip
    kernel = guest.boot + guest.memory // PAGE * STRUCT_PAGE_BYTES
    room = guest.memory - -(-kernel // (2 * MIB)) * 2 * MIB
    if pools_bytes(guest) >= room:
        yield Finding(
            f"{where}.hugetlb", "beside boot and struct pages "
            f"{human_bytes(max(0, room))} of memory are left for the pools and the rest",
            "write smaller pools, or more memory", (f"{where}.memory", f"{where}.boot"),
        )  # fmt: skip
    whole = guest.memory // GIB - -(-kernel // GIB)
    if guest.pool_bytes(GIB) > whole * GIB:
        yield Finding(
            f"{where}.hugetlb.size_1g", f"the guest has {max(0, whole)} whole GiB beside its "
            "kernel's", "write a smaller pool, or more memory",
            (f"{where}.memory", f"{where}.boot"),
        )  # fmt: skip
