"""DAMON: regions that follow what is hot, what they cost, and cold memory that goes in time."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scenarios_small as small
from scenarios_small import BLOCK, GIB, MIB, MS, PAGE, S

from simvm.model import ledger
from simvm.model.policies.damon import FreeShare, Monitor, Quota, Region
from simvm.scenario import DamonReclaim
from simvm.scenario.models import Scenario

# --- regions ----------------------------------------------------------------------------


def monitor(**settings: Any) -> Monitor:
    """Of 1 GiB: twenty samples in an aggregation, cold after ten aggregations."""
    made = Monitor(
        DamonReclaim(min_age=S, **settings), np.random.Generator(np.random.PCG64(1))
    )
    made.watch([(0, GIB)])
    return made


def aggregate(made: Monitor, hot: range, samples: int = 20) -> list[Region]:
    """One aggregation in which all pages of `hot` are accessed all the time: what it came to."""
    for _ in range(samples):
        picked = made.pick()
        made.note((picked >= hot.start) & (picked < hot.stop))
    made.merge()
    return made.regions


def test_one_page_of_each_region_is_looked_at() -> None:
    """1 GiB in at least ten regions: pieces of a tenth, in whole pages, and the last takes the
    rest."""
    made = monitor()
    picked = made.pick()
    assert len(picked) == len(made.regions) == 10
    for region, page in zip(made.regions, picked.tolist(), strict=True):
        assert region.start <= page < region.end
        assert page % PAGE == 0
    assert all(left.end == right.start for left, right in pairwise(made.regions))
    assert (made.regions[0].start, made.regions[-1].end) == (0, GIB)


def test_regions_follow_the_hot_part_within_their_bounds() -> None:
    """100 MiB at 300 MiB are hot: after some aggregations what is taken for hot is that, give or
    take regions that span the border; and looks stay within the bounds."""
    made = monitor(max_regions=200)
    hot = range(300 * MIB, 400 * MIB)
    for _ in range(60):
        regions = aggregate(made, hot)
        assert 10 <= len(regions) <= 200
        assert sum(region.size for region in regions) == GIB
        made.begin()
        assert len(made.regions) <= 200
    assert made.hot_bytes() == pytest.approx(100 * MIB, rel=0.1)
    inside = np.arange(hot.start, hot.stop, MIB, dtype=np.uint64)
    assert made.are_hot(inside) >= 95
    assert made.are_hot(inside + np.uint64(400 * MIB)) == 0
    # It moves, and so do they.
    for _ in range(60):
        aggregate(made, range(700 * MIB, 800 * MIB))
        made.begin()
    assert made.are_hot(inside + np.uint64(400 * MIB)) >= 95
    assert made.are_hot(inside) <= 5


def test_a_region_is_cold_when_it_was_idle_for_min_age() -> None:
    """Ten aggregations of 100 ms are a second; one access makes it young again."""
    made = monitor(max_regions=10)      # no splits
    for _ in range(9):
        aggregate(made, range(0))
        assert list(made.cold()) == []
        made.begin()
    aggregate(made, range(0))
    assert sum(region.size for region in made.cold()) == GIB
    made.begin()
    aggregate(made, range(GIB), samples=1)
    assert list(made.cold()) == []


def test_neighbours_that_differ_by_a_tenth_are_merged_by_their_sizes() -> None:
    """Two samples of twenty apart are alike: (12 x 1 + 10 x 3) / 4 = 10; ages likewise. Regions
    stay below a tenth of the whole, so that there are never fewer than the least."""
    made = monitor()
    made.regions = [Region(0, MIB), Region(MIB, 4 * MIB), Region(4 * MIB, 100 * MIB)]
    made.regions[0].seen, made.regions[1].seen, made.regions[2].seen = 12, 10, 10
    made.regions[0].last, made.regions[1].last, made.regions[2].last = 12, 10, 10
    made.regions[0].age, made.regions[1].age = 3, 7
    made.merge()
    first, second = made.regions
    assert (first.start, first.end, first.seen, first.age) == (0, 4 * MIB, 10, 7)
    assert (second.start, second.end) == (4 * MIB, 100 * MIB)


def test_what_is_known_of_a_range_stays_known() -> None:
    made = monitor()
    aggregate(made, range(GIB))
    made.begin()
    made.watch([(0, 100 * MIB), (2 * GIB, 3 * GIB)])
    assert made.hot_bytes() == 100 * MIB
    assert sum(region.size for region in made.regions) == 100 * MIB + GIB
    assert all(left.end <= right.start for left, right in pairwise(made.regions))


# --- quota and watermarks ---------------------------------------------------------------


def test_the_quota_is_the_less_of_time_and_size() -> None:
    """At first 4 MiB a ms for 10 ms; 8 MiB that took 1 ms make it 80 MiB; 64 MiB a ms would be
    more than 128 MiB. It begins anew each second."""
    quota = Quota(DamonReclaim())
    assert quota.left(0) == 40 * MIB
    quota.charge(8 * MIB, MS)
    assert quota.left(S - 1) == 32 * MIB
    assert quota.left(S) == 80 * MIB
    quota.charge(1016 * MIB, 15 * MS)
    assert quota.left(S) < 0
    assert quota.left(2 * S) == 128 * MIB


def test_damon_works_between_its_watermarks() -> None:
    """It begins below mid, goes on up to high, and rests above that and below low."""
    share = FreeShare(DamonReclaim())
    found = [share.allow(percent, 100) for percent in (60, 45, 39, 45, 51, 45, 30, 19, 30)]
    assert found == [False, False, True, True, False, False, True, False, True]


# --- in a host --------------------------------------------------------------------------

EARLY = {"watermark_high": 1.0, "watermark_mid": 1.0, "check_interval": 10 * MS}
QUICK = {
    "sample_interval": MS, "aggregation_interval": 20 * MS, "min_age": 100 * MS,
    "quota_interval": 50 * MS, **EARLY,
}  # fmt: skip


def hot_and_cold(
    host_page: int = BLOCK, accesses: int = 400_000, page_size: int = PAGE, **values: Any
) -> Scenario:
    """256 MiB touched once, then 64 MiB used for `accesses` of 2 us, on a host of 1 GiB.

    The guest's pages of 4 KiB are more than a TLB holds, so that A bits are set again.
    """
    settings = {name: values.pop(name) for name in [*values] if name in DamonReclaim.model_fields}
    cold = small.phase(
        name="cold", region="cold", allocate=256 * MIB, accesses=256 * 256, measure=False,
        pattern={"kind": "sequential", "stride": PAGE},
    )  # fmt: skip
    work = small.phase(
        name="hot", region="hot", allocate=64 * MIB, accesses=accesses, cycles_per_access=4_000
    )
    return small.scenario(
        {"vm": small.guest(cold, work, memory=512 * MIB, page_size=page_size, **values)},
        host={
            "memory": GIB, "page_size": host_page, "swap": {"device": "nvme", "size": 512 * MIB},
            "reclaim": {"policy": "damon", **QUICK, **settings},
        },
    )  # fmt: skip


@cache
def reclaimed() -> dict[str, Any]:
    return small.result_of(hot_and_cold())


def test_cold_memory_goes_before_memory_is_short() -> None:
    """Of 320 MiB the cold 256 MiB lie on the device in the end, though most of the host is free,
    and the guest hardly feels it: what is hot stays."""
    host = reclaimed()["host"]
    assert host["totals"]["kswapd_ns"] == host["totals"]["direct_reclaim_ns"] == 0
    assert 256 * MIB <= host["final"]["swapped_bytes"] < 280 * MIB
    assert host["totals"]["damon_pages"] == host["totals"]["swap_outs"]
    assert host["totals"]["swap_ins"] < 0.01 * host["totals"]["swap_outs"]
    assert host["slowdown"] < 1.1


def test_what_damon_takes_for_hot_is_what_programs_use() -> None:
    """The truth is 64 MiB that take all accesses; the heap is aligned, so the regions can be."""
    host = reclaimed()["host"]
    assert host["final"]["damon_hot_bytes"] == pytest.approx(64 * MIB, rel=0.1)
    assert host["totals"]["damon_probes"] > 1_000
    assert host["totals"]["damon_hits"] > 0.9 * host["totals"]["damon_probes"]


def test_small_pages_of_a_large_hot_set_look_cold_to_damon() -> None:
    """16,384 pages share an access every 2 us: each is accessed every 33 ms, so that a look of
    1 ms finds one in 33. Of 2 MiB pages each is accessed 16 times a ms."""
    host = small.result_of(hot_and_cold(PAGE, 60_000))["host"]
    assert host["totals"]["damon_hits"] < 0.5 * host["totals"]["damon_probes"]


def test_what_stays_in_a_tlb_looks_cold_to_damon() -> None:
    """64 MiB in guest pages of 2 MiB are 32 TLB entries, which nobody drops: their A bits are
    not set again, and hot memory goes. With a flush after each look it is seen."""
    elide, flush = (
        small.result_of(hot_and_cold(page_size=BLOCK, accesses=60_000, aging_flush=each))["host"]
        for each in ("elide", "flush")
    )  # fmt: skip
    assert elide["totals"]["damon_hits"] < 0.2 * elide["totals"]["damon_probes"]
    assert flush["totals"]["damon_hits"] > 0.7 * flush["totals"]["damon_probes"]
    assert flush["totals"]["shootdowns"] > elide["totals"]["shootdowns"]


def test_looks_are_charged() -> None:
    """A guest whose memory is never cold, in at most 20 regions: each ms no more than 40 looks of
    223 ns, and at least 2 x 10."""
    made = small.simulate(hot_and_cold(max_regions=20, min_age=3600 * S))
    totals = small.summary_of(made)["host"]["totals"]
    assert totals["damon_pages"] == 0
    rounds = made.env.now // MS
    look = made.host.costs.reclaim_scan_ns
    assert 0.8 * rounds * 20 * look < totals["damon_ns"] <= rounds * 40 * look


def test_the_quota_bounds_what_goes_in_an_interval() -> None:
    """4 MiB in each 50 ms are 80 MiB in a second."""
    host = small.result_of(hot_and_cold(quota_size=4 * MIB))["host"]
    assert 0 < host["totals"]["damon_pages"] * PAGE <= 84 * MIB


def test_when_memory_is_short_the_lists_do_it() -> None:
    """It may work while less than 1 % is free at most: kswapd comes first."""
    host = {"reclaim": {"policy": "damon", **QUICK, "watermark_low": 1.0}}
    totals = small.result_of(small.pressed(accesses=4_000, host=host))["host"]["totals"]
    assert totals["damon_ns"] == totals["damon_pages"] == 0
    assert totals["swap_outs"] > 0
    assert totals["kswapd_ns"] > 0


@pytest.mark.parametrize("virtualization", ["none", "shadow"])
def test_damon_works_in_containers_and_under_shadow_paging(virtualization: str) -> None:
    """A container's pages of 2 MiB stay in the TLB as well, hence the flush."""
    made = small.simulate(hot_and_cold(
        accesses=150_000, virtualization=virtualization, aging_flush="flush"
    ))  # fmt: skip
    host = small.summary_of(made)["host"]
    assert host["totals"]["damon_pages"] * PAGE > 200 * MIB
    assert host["totals"]["damon_hits"] > 0.8 * host["totals"]["damon_probes"]
    ledger.audit(made.host)


def test_a_guest_may_die_under_its_eyes() -> None:
    made = small.simulate(hot_and_cold(stop=400 * MS))
    assert made.host.reclaimer.damon is not None
    made.env.run(made.env.now + 100 * MS)
    assert made.host.reclaimer.damon._watched == {}
    ledger.audit(made.host)


def test_a_run_is_determined_by_its_seed() -> None:
    again = small.result_of(hot_and_cold())
    assert again == reclaimed()
