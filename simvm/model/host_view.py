"""What the host can see of a guest: the names of its memory, and what each holds.

The host knows the names of VMAs, as /proc/PID/smaps shows them, and nothing of regions and
processes. A name that it was not told, or that is out of date, is missing or wrong here.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simvm.model.guest import Guest, NamedRegion


def host_view(guest: Guest) -> list[dict[str, Any]]:
    """By name (None: no name), how much a guest's VMAs span and what of it is backed."""
    if not guest.alive or not guest.is_vm:
        return []
    spans: dict[str | None, int] = defaultdict(int)
    backed: dict[str | None, int] = defaultdict(int)
    for vma in guest.control.vmas:
        spans[vma.flags.name] += vma.end - vma.start
        backed[vma.flags.name] += guest.backing.backed_bytes(vma.start, vma.end)
    return [
        {"name": name, "bytes": spans[name], "backed_bytes": backed[name]}
        for name in sorted(spans, key=lambda name: name or "")
    ]


def is_named(guest: Guest, region: NamedRegion) -> bool:
    """Whether the host knows all memory of a region by the region's name."""
    if not guest.is_vm or all(vma.flags.name != region.name for vma in guest.control.vmas):
        return False
    extents = guest.extents(region)
    return bool(extents) and all(
        vma.flags.name == region.name
        for start, length in extents
        for vma in guest.control.vmas.overlapping(start, start + length)
    )


def hint_summary(guest: Guest) -> dict[str, dict[str, int]]:
    """By operation of pvmemcontrol: ranges that the guest asked it for, and refusals."""
    control = guest.control
    return {
        name: {"ranges": control.done[name], "failed": control.failed[name]}
        for name in sorted(control.done)
    }
