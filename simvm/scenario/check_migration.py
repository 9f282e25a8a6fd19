"""Rules of guests that migrate in or out."""

from __future__ import annotations

from collections.abc import Iterator

from simvm.scenario.check_guest_memory import STRUCT_PAGE_BYTES
from simvm.scenario.check_usage import extremes
from simvm.scenario.finding import Finding
from simvm.scenario.models import GuestClass, Phase, Scenario
from simvm.units import KIB, format_bytes, human_bytes

PAGE = 4 * KIB


def findings(scenario: Scenario) -> Iterator[Finding]:
    """Every rule that they break."""
    for name, guest in scenario.guests.items():
        where = f"guest.{name}"
        for key in ("migrate_in", "migrate_out"):
            if getattr(guest, key) is not None:
                yield from _kind(f"{where}.{key}", where, guest)
        if guest.migrate_in is not None:
            yield from _resident(f"{where}.migrate_in.resident", where, guest)
        if guest.migrate_out is not None:
            yield from _out(scenario, f"{where}.migrate_out", where, guest)


def _kind(at: str, where: str, guest: GuestClass) -> Iterator[Finding]:
    if guest.virtualization == "none":
        yield Finding(
            at, "containers do not migrate live", "remove it, or write virtualization = \"nested\"",
            (f"{where}.virtualization",),
        )  # fmt: skip
    elif guest.virtualization == "shadow":
        yield Finding(
            at, "migration under shadow paging is not modelled",
            'remove it, or write virtualization = "nested"', (f"{where}.virtualization",),
        )  # fmt: skip


def _resident(at: str, where: str, guest: GuestClass) -> Iterator[Finding]:
    size = guest.boot + guest.memory // PAGE * STRUCT_PAGE_BYTES
    kernel = -(-size // PAGE) * PAGE
    regions = {
        (phase.process, phase.region): _most_of(phase)
        for phase in reversed(guest.workload) if phase.hugetlb is None
    }  # fmt: skip
    most = min(guest.memory, kernel + sum(regions.values()))
    settings = guest.migrate_in
    assert settings is not None
    if settings.resident < kernel:
        yield Finding(
            at, f"must hold the kernel's own, boot and struct pages: {human_bytes(kernel)}",
            f'write "{format_bytes(kernel)}" or more', (f"{where}.boot", f"{where}.memory"),
        )  # fmt: skip
    elif settings.resident > most:
        yield Finding(
            at, "must not be more than the kernel's memory and the regions that phases make, "
            f"{human_bytes(most)}",
            f'write "{format_bytes(most)}" or less',
            (f"{where}.boot", f"{where}.memory", f"{where}.workload"),
        )  # fmt: skip


def _most_of(phase: Phase) -> int:
    """What the region is at the most that a phase makes; 0 when it makes none."""
    known = extremes(phase.usage) if phase.usage is not None else None
    return known[1] if known is not None else phase.allocate or 0


def _out(scenario: Scenario, at: str, where: str, guest: GuestClass) -> Iterator[Finding]:
    if guest.stop is None and guest.lifetime is None:
        yield Finding(
            at, "the guests never depart", 'add lifetime = "2h", or stop',
            (f"{where}.lifetime", f"{where}.stop"),
        )  # fmt: skip
    if scenario.host.backing == "hugetlb":
        yield Finding(
            at, "which 4 KiB of a hugetlb page are dirty is not modelled",
            'remove it, or write backing = "memfd"', ("host.backing",),
        )  # fmt: skip
