"""How the host makes and keeps huge pages: settings of compaction, khugepaged, fragmentation."""

from __future__ import annotations

from typing import Annotated, Literal

from simvm import units
from simvm.scenario import fields as f
from simvm.scenario.base import Model
from simvm.scenario.fields import one_of

Defrag = Annotated[
    Literal["never", "direct", "background"], one_of("never", "direct", "background")
]
"""What a fault does that may back 2 MiB and finds no block free (transparent_hugepage/defrag)."""


class Fragmentation(Model):
    """What the host's own pages have done to free memory before the run begins."""

    share: f.Share
    """Of free memory, what does not lie in a whole free block of 2 MiB."""
    unmovable: f.Share = 0.1
    """Of the broken blocks, those in which one of the host's pages cannot be moved."""
    pages: f.BlockPages = 64
    """Pages of 4 KiB that the host itself has in each broken block; no figure, a choice."""


class Khugepaged(Model):
    """The thread that joins 4 KiB pages into 2 MiB (mm/khugepaged.c)."""

    pages_to_scan: f.Count = 4096
    """Pages of 4 KiB looked at between two sleeps, in ranges of 512."""
    scan_sleep: f.Duration = 10 * units.SECOND
    alloc_sleep: f.Duration = 60 * units.SECOND
    """After it found no block of 2 MiB."""
    max_ptes_none: f.Entries = 511
    """Pages of a range that may be missing; they are backed and zeroed."""
    max_ptes_swap: f.Entries = 64
    """Pages of a range that may be on the swap device; they are read."""
