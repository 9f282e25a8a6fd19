"""The ledger: every byte of host RAM is in exactly one column, at every sample.

What guests, devices and pools say they hold is counted where it is held and added up; it
must equal host RAM. Nothing here asks the allocator how much it gave to whom, so a frame
that leaked, or was counted twice, shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from simvm.errors import SimulationFailed
from simvm.hardware.geometry import PAGE

if TYPE_CHECKING:
    from simvm.model.host import Host



def entries(host: Host) -> dict[str, int]:
    """The columns of the ledger, in bytes."""
    guests = host.guests.values()
    return {
        "free": host.free_bytes,
        "hugetlb pool, free": host.memory.free_pool_bytes,
        "guest data": sum(guest.backed_bytes for guest in guests),
        "SLAT and native tables": sum(guest.slat.table_pages for guest in guests) * PAGE,
        "shadow tables": sum(guest.shadow_table_bytes for guest in guests),
        "host tables": sum(guest.slat.mirror_pages for guest in guests) * PAGE,
        "deposited tables": sum(guest.slat.deposited_pages for guest in guests) * PAGE,
        "VMM overhead": sum(len(guest.vmm_pages) for guest in guests) * PAGE,
        "partly unmapped": host.memory.partial_bytes,
        "under writeback": host.swap.writeback_bytes,
        "swap cache": host.swap.reading_bytes,
        "compressed pool": host.swap.pool.held_bytes if host.swap.pool else 0,
        "merged pages": host.memory.merged_bytes,
        "merge metadata": len(host.ksm.metadata_pages) * PAGE if host.ksm else 0,
        "the host's scattered pages": host.scattered_bytes,
        "memmap": host.memmap_bytes,
        "reserved": host.reserved_bytes,
    }


def balance(host: Host) -> None:
    """SimulationFailed when the columns do not add up to host RAM."""
    columns = entries(host)
    away = sum(guest.swapped_bytes + guest.tier_bytes for guest in host.guests.values())
    if away != host.swap.used_bytes:
        raise SimulationFailed(
            f"at {host.env.now} ns {away} bytes of guests are on a swap device that holds"
            f" {host.swap.used_bytes}"
        )
    total = sum(columns.values())
    if total != host.settings.memory:
        listed = ", ".join(f"{name} {size}" for name, size in columns.items())
        raise SimulationFailed(
            f"at {host.env.now} ns the ledger is off by"
            f" {total - host.settings.memory} bytes: {listed}"
        )


def claim_pages(
    claimed: np.ndarray[tuple[int], np.dtype[np.uint64]], pages: list[int]
) -> bool:
    """Mark host pages of 4 KiB; False when one has an owner already."""
    alone = True
    for page in pages:
        word, bit = page // PAGE // 64, np.uint64(1 << (page // PAGE % 64))
        alone = alone and not claimed[word] & bit
        claimed[word] |= bit
    return alone


def audit(host: Host) -> None:
    """The thorough check: no frame has two owners, and the allocator agrees with a recount.

    A merged frame has as many owners as map it, and is claimed once, for nobody.
    """
    claimed = np.zeros(host.settings.memory // PAGE // 64 + 1, dtype=np.uint64)
    alone = all(guest.claim(claimed) for guest in host.guests.values())
    pool = host.swap.pool.pages if host.swap.pool else []
    items = host.ksm.metadata_pages if host.ksm else []
    alone = claim_pages(claimed, pool + items) and alone
    if host.scattered_bytes:
        alone = host.memory.claim(claimed) and alone
    if not (host.memory.claim_merged(claimed) and alone):
        raise SimulationFailed(f"at {host.env.now} ns a frame of the host has two owners")
    if not all(guest.backing.shadow_agrees() for guest in host.guests.values()):
        raise SimulationFailed(f"at {host.env.now} ns a shadow table maps what is not mapped")
    if host.memory.frames.recount() != host.free_bytes:
        raise SimulationFailed(f"at {host.env.now} ns free memory is miscounted")
    if host.sums[""]["backed_bytes"] != sum(guest.backed_bytes for guest in host.guests.values()):
        raise SimulationFailed(f"at {host.env.now} ns the sum over guests was not kept")
