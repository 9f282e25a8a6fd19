"""How the host takes memory back: settings of each reclaim policy.

Every policy shares the watermarks and the way accessed bits are cleared; what else it can be
told stands with it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from simvm import units
from simvm.scenario import fields as f
from simvm.scenario.base import Model, choice
from simvm.scenario.fields import one_of


class Proactive(Model):
    """Memory is taken before it is short: as much a second, or until so much is free."""

    rate: f.Size | None = None
    """Bytes a second."""
    free: f.PageMultiple | None = None
    """Free memory to aim for."""
    interval: f.Duration = units.SECOND
    """How often."""


class Memcg(Model):
    """The memory cgroup that each guest of the class has: limits, and protection."""

    max: f.PageMultiple | None = None
    """A guest that would hold more reclaims its own memory, or is killed."""
    high: f.PageMultiple | None = None
    """A guest that holds more reclaims its own memory, and sleeps while that does not help."""
    low: f.PageMultipleOrZero = 0
    """Reclaim for the host takes nothing from a guest that holds less, while others have any."""
    min: f.PageMultipleOrZero = 0
    """Reclaim for the host takes nothing from a guest that holds less."""


class Watermarks(Model):
    """What all policies share."""

    watermark_scale_factor: f.ScaleFactor = 10
    """Distance between the watermarks, in ten-thousandths of memory (Linux mm/page_alloc.c)."""
    min_free: f.PageMultiple | None = None
    """The min watermark; by default what Linux computes from the size of memory."""
    aging_flush: Annotated[Literal["elide", "flush"], one_of("elide", "flush")] = "elide"
    """Whether clearing A flushes TLBs; KVM on x86 elides that."""
    proactive: Proactive | None = None
    """Reclaim before memory is short, by a thread of its own."""


class NoReclaim(Watermarks):
    """Nothing is ever taken back."""

    policy: Literal["none"] = "none"


class LruReclaim(Watermarks):
    """Active and inactive lists."""

    policy: Literal["lru"] = "lru"


class MglruReclaim(Watermarks):
    """Lists by generation, aged by walks through page tables."""

    policy: Literal["mglru"] = "mglru"
    min_ttl: f.Time = 0
    """A generation younger than this is not evicted: rather the OOM killer comes."""


class DamonReclaim(Watermarks):
    """Access monitoring finds cold memory before it is short; then the two lists, as `lru`.

    Defaults are those of Linux' DAMON_RECLAIM, mm/damon/reclaim.c.
    """

    policy: Literal["damon"] = "damon"
    sample_interval: f.Duration = 5 * units.MS
    """From one look at a page of each region to the next."""
    aggregation_interval: f.Duration = 100 * units.MS
    """Looks are added up for so long; then regions are merged, paged out and split."""
    min_regions: f.MonitoredRegions = 10
    """Of each guest."""
    max_regions: f.MonitoredRegions = 1000
    """Of each guest; looks cost no more than these take."""
    min_age: f.Duration = 120 * units.SECOND
    """A region without an access for so long is cold."""
    quota_time: f.Duration = 10 * units.MS
    """Time to spend on paging out, in each quota_interval."""
    quota_size: f.PageMultiple = 128 * units.MIB
    """Memory to try to page out, in each quota_interval."""
    quota_interval: f.Duration = units.SECOND
    """After which both quotas begin anew."""
    watermark_high: f.Share = 0.5
    """It rests while more than this share of memory is free ..."""
    watermark_mid: f.Share = 0.4
    """... begins below this one ..."""
    watermark_low: f.Share = 0.2
    """... and leaves it to the lists below this one."""
    check_interval: f.Duration = 5 * units.SECOND
    """While it rests, how often it looks at free memory."""


Reclaim = Annotated[
    NoReclaim | LruReclaim | MglruReclaim | DamonReclaim,
    Field(discriminator="policy"),
    choice("policy", NoReclaim, LruReclaim, MglruReclaim, DamonReclaim, default="lru"),
]
"""A policy with its settings; without a word, `lru`."""
