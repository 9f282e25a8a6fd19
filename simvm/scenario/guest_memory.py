"""What a guest's own kernel does with its memory: settings of each mechanism.

A guest whose class has one of these tables keeps account of its memory: it has watermarks,
kswapd and lists of pages. Without any, its kernel hands out memory until there is none.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from simvm.scenario import fields as f
from simvm.scenario.base import Model, choice
from simvm.scenario.fields import one_of
from simvm.scenario.swap import NoSwap, NvmeSwap
from simvm.units import SECOND


class GuestPageCache(Model):
    """Files that the guest reads through its page cache, beside its programs."""

    files: f.PageMultiple
    """Their size in all."""
    read_rate: f.Size
    """Bytes a second, read in pieces of 128 KiB."""
    order: Annotated[Literal["sequential", "uniform"], one_of("sequential", "uniform")] = (
        "sequential"
    )
    """sequential: from end to end, again and again; uniform: any piece alike."""
    write_fraction: f.Share = 0.0
    """Share of the pieces that are written: their pages are dirty until reclaim writes them."""
    latency: f.Duration | None = None
    """Of one request to the guest's disk; what is None comes from the cost set."""
    parallelism: f.Parallelism | None = None
    """Requests that the disk serves at once."""
    bandwidth: f.Size | None = None
    """Bytes a second."""


class GuestWatermarks(Model):
    """How the guest takes memory back from its cache and its programs."""

    watermark_scale_factor: f.ScaleFactor = 10
    """Distance between the watermarks, in ten-thousandths of memory (Linux mm/page_alloc.c)."""
    min_free: f.PageMultiple | None = None
    """The min watermark; by default what Linux computes from the size of memory."""
    swappiness: f.Swappiness = 60
    """Programs' pages are scanned as to files' pages as this to 200 less this (mm/vmscan.c)."""


class GuestKhugepaged(Model):
    """Huge pages after the fault (mm/khugepaged.c)."""

    pages_to_scan: f.Count = 4096
    """4 KiB entries looked at in a pass."""
    scan_sleep: f.Duration = 10 * SECOND
    """Between two passes."""
    max_ptes_none: f.Entries = 511
    """Entries of 512 that may be empty; each becomes memory that nobody asked for."""
    defrag: f.Flag = True
    """Whether it empties a broken block where none is whole."""


class GuestHugetlb(Model):
    """Pools of huge pages, reserved when the guest boots."""

    size_2m: f.PageMultipleOrZero = 0
    """In pages of 2 MiB."""
    size_1g: f.PageMultipleOrZero = 0
    """In pages of 1 GiB."""


class GuestFragmentation(Model):
    """What an earlier life of the guest left in its memory: a page in a share of free blocks."""

    movable: f.Share = 0.0
    """Share of the free 2 MiB blocks that hold a page of a file: it can move, or be dropped."""
    unmovable: f.Share = 0.0
    """Share that holds a page of the kernel's own, which stays."""


class GuestShortProcesses(Model):
    """Processes that come and go beside the workload: a login, or what a monitor starts."""

    schedule: f.Schedule
    """When some start, from the guest's start on, and the memory they take together."""
    processes: f.Count = 1
    """So many each time, one after another, on vCPUs drawn at random; each takes an equal part."""
    stay: f.Duration
    """How long one of them keeps its memory, after it has written all of it."""


GuestSwap = Annotated[
    NoSwap | NvmeSwap, Field(discriminator="device"), choice("device", NoSwap, NvmeSwap)
]
"""A swap device of the guest's own."""


class GuestMemoryKeys(Model):
    """The keys of a class of guests that are about its kernel's memory."""

    page_cache: GuestPageCache | None = None
    """See below; without it there are no files."""
    reclaim: GuestWatermarks | None = None
    """See below: the guest's own reclaim."""
    swap: GuestSwap = NoSwap()
    """A device of the guest's own, `none` or `nvme`, with the keys of `host.swap`."""
    khugepaged: GuestKhugepaged | None = None
    """See below; without it huge pages come at faults alone."""
    hugetlb: GuestHugetlb | None = None
    """See below: pools in the guest."""
    fragmentation: GuestFragmentation | None = None
    """See below; without it memory is fresh."""
    kernel_place: Annotated[Literal["low", "high"], one_of("low", "high")] = "low"
    """Where boot footprint and struct pages lie; Linux on x86 puts them at the top (memblock)."""
    per_cpu_lists: f.Flag = False
    """Free pages on the lists of Linux, one for each vCPU; freeing takes the vCPU's time."""
    short_processes: GuestShortProcesses | None = None
    """See below; without it there are none."""

    @property
    def keeps_account(self) -> bool:
        """Whether the guest's kernel has watermarks, kswapd and lists of pages."""
        tables = (
            self.page_cache, self.reclaim, self.khugepaged, self.hugetlb, self.fragmentation,
        )  # fmt: skip
        return self.swap.device != "none" or any(table is not None for table in tables)

    def pool_bytes(self, page: int) -> int:
        """The pool of huge pages of `page` bytes."""
        if self.hugetlb is None:
            return 0
        return self.hugetlb.size_2m if page == 2 << 20 else self.hugetlb.size_1g
