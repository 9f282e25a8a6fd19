"""How the host takes memory back: settings of each reclaim policy.

Every policy shares the watermarks and the way accessed bits are cleared; what else it can be
told stands with it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from simvm.scenario import fields as f
from simvm.scenario.base import Model, choice
from simvm.scenario.fields import one_of


class Watermarks(Model):
    """What all policies share."""

    watermark_scale_factor: f.ScaleFactor = 10
    """Distance between the watermarks, in ten-thousandths of memory (Linux mm/page_alloc.c)."""
    min_free: f.PageMultiple | None = None
    """The min watermark; by default what Linux computes from the size of memory."""
    aging_flush: Annotated[Literal["elide", "flush"], one_of("elide", "flush")] = "elide"
    """Whether clearing A flushes TLBs; KVM on x86 elides that."""


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


Reclaim = Annotated[
    NoReclaim | LruReclaim | MglruReclaim,
    Field(discriminator="policy"),
    choice("policy", NoReclaim, LruReclaim, MglruReclaim, default="lru", later=("damon",)),
]
"""A policy with its settings; without a word, `lru`."""
