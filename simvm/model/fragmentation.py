"""Host memory that is fragmented before the run begins.

Pages of the host itself (its page cache, its kernel's objects) lie scattered over blocks of
2 MiB, so that much memory is free and little of it in whole blocks. The blocks, and the
places in them, are drawn at random.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from simvm.hardware.geometry import BLOCK, PAGE
from simvm.workload.patterns import random_bits

if TYPE_CHECKING:
    from simvm import _core
    from simvm.scenario import Fragmentation

BLOCK_PAGES = BLOCK // PAGE


def blocks_to_break(whole: int, share: float, pages: int) -> int:
    """How many of `whole` free blocks, `pages` pages taken in each, leave that share broken.

    n (512 - pages) = share (512 whole - n pages): of what is then free, the part in n blocks.
    """
    n = share * BLOCK_PAGES * whole / (BLOCK_PAGES - pages + share * pages)
    return min(whole, int(n + 0.5))


def scatter(memory: _core.HostMemory, settings: Fragmentation, seed: int) -> int:
    """Let the host's own pages lie about in free memory; bytes that they take."""
    random = np.random.Generator(random_bits(seed, "host/fragmentation"))
    frames = memory.frames
    wanted = blocks_to_break(frames.free_blocks, settings.share, settings.pages)
    unmovable = round(wanted * settings.unmovable)
    broken = 0
    for block in random.permutation(frames.size // BLOCK):
        if broken == wanted:
            break
        places = random.permutation(BLOCK_PAGES)[: settings.pages]
        addresses = (int(block) * BLOCK_PAGES + places.astype(np.uint64)) * np.uint64(PAGE)
        fixed = 1 if broken < unmovable else 0
        try:
            memory.scatter(addresses[:fixed], movable=False)
            memory.scatter(addresses[fixed:], movable=True)
        except MemoryError:
            continue        # the block is the kernel's
        broken += 1
    return broken * settings.pages * PAGE
