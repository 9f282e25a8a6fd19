"""Reclaim policies: which folios to take. They decide; `simvm.model.reclaim` acts.

A policy sees accessed bits (harvested for it, and charged) and the lists of one group of
guests; never the touched bits, which are the truth. Adding one: a class with what `Policy`
names, in a file of its own, and a line in `POLICIES`.
"""

from __future__ import annotations

from simvm.model.policies.base import CLUSTER_PAGES, Decision, Lists, Policy
from simvm.model.policies.lru import ActiveInactive
from simvm.model.policies.mglru import MultiGen

__all__ = ["CLUSTER_PAGES", "POLICIES", "ActiveInactive", "Decision", "Lists", "Policy"]

POLICIES: dict[str, type[Policy]] = {
    "lru": ActiveInactive,
    "mglru": MultiGen,
    "damon": ActiveInactive,    # beside the lists: `simvm.model.damon`
}
"""By the word of `host.reclaim.policy`; `none` has none."""
