"""An aged guest: pages that an earlier life left in blocks which are free but for them.

A page of a file can move, or be dropped by reclaim; one of the kernel's own stays for good. A
block with either is no 2 MiB page for a fault, which takes 4 KiB pages once whole blocks are
used up. khugepaged can empty the former by compaction, and never the latter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from simvm import _core
from simvm.hardware.geometry import BLOCK, PAGE
from simvm.workload.patterns import random_bits

if TYPE_CHECKING:
    from simvm.model.guest_memory.manager import GuestMemory
    from simvm.scenario.guest_memory import GuestFragmentation


def litter(
    mm: GuestMemory, kernel: _core.GuestKernel, settings: GuestFragmentation, first_file_page: int
) -> None:
    """Take a page in each of a share of the free blocks, chosen at random."""
    guest, memory = mm.guest, mm.guest.memory
    seed = guest.scenario.scenario.seed
    random = np.random.Generator(random_bits(seed, f"{guest.name}/fragmentation"))
    free = memory.free_blocks
    fixed, loose = round(settings.unmovable * free), round(settings.movable * free)
    loose = min(loose, free - fixed)
    for block in random.permutation(memory.size // BLOCK):
        if not fixed + loose:
            break
        address = int(block) * BLOCK + int(random.integers(BLOCK // PAGE)) * PAGE
        try:
            memory.claim(address, movable=not fixed)
        except ValueError:
            continue  # the kernel's own, or of a pool
        if fixed:
            fixed -= 1
            mm.pinned_bytes += PAGE
        else:
            loose -= 1
            kernel.cache(first_file_page + loose, address)
        mm.written_at_boot.append(address)
