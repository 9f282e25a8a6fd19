"""Rules between the keys of reclaim, and of guests' limits."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from simvm.scenario.finding import Finding
from simvm.scenario.models import Scenario
from simvm.scenario.reclaim import DamonReclaim, Memcg
from simvm.units import format_bytes, format_ns


def findings(scenario: Scenario) -> Iterator[Finding]:
    """Every rule that they break."""
    reclaim = scenario.host.reclaim
    where, uses = "host.reclaim.proactive", ("host.reclaim.policy",)
    if reclaim.proactive is not None:
        given = [key for key in ("rate", "free") if getattr(reclaim.proactive, key) is not None]
        if len(given) != 1:
            yield Finding(
                where, "needs rate or free, and not both",
                'write rate = "64MiB" (a second), or free = "2GiB"', uses,
            )  # fmt: skip
        if reclaim.policy == "none":
            yield Finding(where, "there is no policy to reclaim by", 'write policy = "lru"', uses)
        if reclaim.proactive.free is not None and reclaim.proactive.free >= scenario.host.memory:
            yield Finding(
                f"{where}.free", "must be less than the host's memory", "write less",
                ("host.memory",),
            )  # fmt: skip
    if isinstance(reclaim, DamonReclaim):
        yield from _damon(reclaim)
    for name, guest in scenario.guests.items():
        if guest.memcg is not None:
            yield from _memcg(scenario, f"guest.{name}.memcg", guest.memcg)


def _damon(damon: DamonReclaim) -> Iterator[Finding]:
    for less, more, show in (
        ("sample_interval", "aggregation_interval", format_ns),
        ("min_regions", "max_regions", str),
        ("watermark_mid", "watermark_high", str),
        ("watermark_low", "watermark_mid", str),
    ):
        most = getattr(damon, more)
        if getattr(damon, less) > most:
            quote = '"' if show is format_ns else ""
            yield Finding(
                f"host.reclaim.{less}", f"must not be more than {more}",
                f"write {quote}{show(most)}{quote} or less", (f"host.reclaim.{more}",),
            )  # fmt: skip


def _memcg(scenario: Scenario, where: str, memcg: Memcg) -> Iterator[Finding]:
    if scenario.host.backing == "hugetlb":
        yield Finding(
            where, "pages of a hugetlb pool are not counted", "remove it", ("host.backing",)
        )
    if scenario.host.reclaim.policy == "none" and (memcg.max or memcg.high):
        yield Finding(
            where, "without a policy nothing can be reclaimed within a guest",
            'write reclaim = { policy = "lru" }', ("host.reclaim.policy",),
        )  # fmt: skip
    order = ("min", "low", "high", "max")
    bounds = [(key, getattr(memcg, key)) for key in order if getattr(memcg, key)]
    for (key, less), (above, more) in pairwise(bounds):
        if less > more:
            yield Finding(
                f"{where}.{key}", f"must not be more than {above}",
                f'write "{format_bytes(more)}" or less', (f"{where}.{above}",),
            )  # fmt: skip
