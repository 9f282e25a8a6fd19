"""Reclaim by generations: when page tables are walked, what is evicted, and what it costs."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import scenarios_small as small
from scenarios_small import MIB, PAGE, S

from simvm.model import ledger
from simvm.model.policies import Decision
from simvm.model.policies.mglru import MultiGen
from simvm.scenario import MglruReclaim
from simvm.scenario.models import Scenario

# --- the policy -------------------------------------------------------------------------


class Lists:
    """Folios of one page on four lists, as the policy sees them; some were accessed."""

    def __init__(self) -> None:
        self.lists: dict[int, list[int]] = {which: [] for which in range(1, 5)}
        self.young: set[int] = set()
        self.now = 0

    def list_bytes(self, which: int) -> int:
        return len(self.lists[which]) * PAGE

    def scan(self, which: int, pages: int) -> list[tuple[int, bool]]:
        return [(folio, folio in self.young) for folio in self.lists[which][:pages]]


class Policy:
    """The policy, and folios that do as it says."""

    def __init__(self, min_ttl: int = 0) -> None:
        self.policy = MultiGen(MglruReclaim(min_ttl=min_ttl))
        self.lists = Lists()

    def add(self, *folios: int) -> None:
        self.lists.lists[self.policy.new_list] += folios

    def choose(self) -> Decision:
        decision = self.policy.choose(self.lists)  # type: ignore[arg-type]
        found = [*self.lists.young] if decision.walk else []
        for which, folios in [*decision.moves, (decision.young_list, found)]:
            for folio in folios:
                self.take(folio)
                self.lists.lists[which].append(folio)
        for folio in decision.evict:
            self.take(folio)
        return decision

    def take(self, folio: int) -> None:
        for held in self.lists.lists.values():
            if folio in held:
                held.remove(folio)


def test_new_folios_are_youngest_and_two_walks_away_from_eviction() -> None:
    """Ten folios, of which one is accessed before each walk: nine go after the second walk."""
    policy = Policy()
    policy.add(*range(10))
    policy.lists.young = {7}
    first, second, third = policy.choose(), policy.choose(), policy.choose()
    assert first.walk
    assert second.walk
    assert first.evict == second.evict == []
    assert not third.walk
    assert third.evict == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert third.scanned == 9


def test_a_folio_that_is_accessed_after_the_walk_is_saved_with_its_neighbours() -> None:
    policy = Policy()
    policy.add(1, 2, 3)
    policy.choose()
    policy.choose()
    policy.lists.young = {2}
    decision = policy.choose()
    assert decision.evict == [1, 3]
    assert decision.young == decision.around == [2]
    assert decision.moves == [(policy.policy.new_list, [2])]
    assert decision.young_list == policy.policy.new_list
    assert policy.lists.lists[policy.policy.new_list] == [2]


def test_there_are_never_more_than_four_generations() -> None:
    """With an oldest generation to evict there is no walk, however uneven the others are."""
    policy = Policy()
    policy.add(*range(100))
    for step in range(8):
        policy.lists.young = set(range(100 - step, 100))
        policy.choose()
        assert policy.policy._youngest - policy.policy._oldest < 4
        policy.add(1000 + step)


def test_nothing_to_look_at_is_no_reason_to_walk() -> None:
    assert Policy().choose() == Decision()


def test_a_generation_younger_than_min_ttl_is_kept() -> None:
    """The oldest that is not protected was opened at 2 s, and kept for 5 s: to 7 s."""
    policy = Policy(min_ttl=5 * S)
    policy.add(0)
    policy.lists.now = 2 * S
    policy.choose()                # opens a generation, which gets folio 1
    policy.add(1)
    policy.lists.now = 6 * S
    policy.choose()                # opens another; the one of folio 0 was opened at 0 s
    assert policy.choose().evict == [0]
    assert policy.choose().walk    # too few generations are left
    policy.lists.now = 7 * S - 1
    assert policy.choose() == Decision()
    policy.lists.now = 7 * S
    assert policy.choose().evict == [1]


# --- in a host --------------------------------------------------------------------------


@cache
def polluted(policy: str) -> dict[str, Any]:
    """24 MiB used all the time, and one pass over 80 MiB, in 4 KiB pages on 64 MiB of RAM."""
    hot = small.phase(
        name="hot", region="hot", task="hot", allocate=24 * MIB, accesses=100_000,
        cycles_per_access=1_000,
    )  # fmt: skip
    cold = small.phase(
        name="cold", region="cold", task="cold", allocate=80 * MIB, accesses=80 * 256,
        pattern={"kind": "sequential", "stride": PAGE}, cycles_per_access=2_000, measure=False,
    )  # fmt: skip
    return small.result_of(small.scenario(
        {"vm": small.guest(hot, cold, vcpus=2, memory=128 * MIB, page_size=PAGE)},
        host={
            "memory": 64 * MIB, "page_size": PAGE, "swap": {"device": "nvme", "size": 512 * MIB},
            "reclaim": {"policy": policy},
        },
    ))  # fmt: skip


def test_a_pass_over_cold_memory_pollutes_generations_less_than_two_lists() -> None:
    lru, mglru = polluted("lru")["host"], polluted("mglru")["host"]
    assert mglru["totals"]["swap_ins"] < 0.9 * lru["totals"]["swap_ins"]
    assert mglru["slowdown"] < lru["slowdown"]
    # Neighbours are looked at together, so less time goes into looking.
    assert 0 < mglru["totals"]["aging_ns"] < 0.5 * lru["totals"]["aging_ns"]
    for of in (lru, mglru):
        reclaim = of["totals"]["kswapd_ns"] + of["totals"]["direct_reclaim_ns"]
        assert of["totals"]["aging_ns"] < reclaim


@pytest.mark.parametrize("flush", ["elide", "flush"])
def test_a_walk_that_finds_something_young_may_shoot_down(flush: str) -> None:
    """The first walk finds what was accessed, a second one at the same moment nothing: with a
    flush the first interrupts the guest once, however much it found."""
    made = small.simulate(small.scenario(
        {"vm": small.guest(page_size=PAGE)},
        host={
            "page_size": PAGE, "swap": {"device": "nvme", "size": 512 * MIB},
            "reclaim": {"policy": "mglru", "aging_flush": flush},
        },
    ))  # fmt: skip
    (guest,) = made.guests
    before = guest.shootdowns, guest.invalidations
    for _ in range(2):
        made.host.reclaimer.shrink()
    once = flush == "flush"
    assert (guest.shootdowns, guest.invalidations) == (before[0] + once, before[1] + once)
    assert made.host.reclaimer.aging_ns > 0
    assert guest.vcpus[0]._mmu.behind(guest.owner) == once


def one_walk(touched: int, **guest: Any) -> tuple[int, int]:
    """ns of one walk over a guest that holds `touched` bytes in 4 KiB, and its table pages."""
    work = small.phase(
        allocate=touched, accesses=touched // PAGE, pattern={"kind": "sequential", "stride": PAGE}
    )
    made = small.simulate(small.scenario(
        {"vm": small.guest(work, page_size=PAGE, **guest)},
        host={"page_size": PAGE, "reclaim": {"policy": "mglru"}},
    ))  # fmt: skip
    (group,) = made.host.reclaimer._groups
    hit: dict[int, Any] = {}
    cost = made.host.reclaimer._walk(group, 1, hit)
    assert hit == {}
    return cost, made.guests[0].slat.table_pages


def test_a_walk_costs_its_tables_and_its_leaves() -> None:
    """64 MiB, boot memory and guest tables by 4 KiB: backed / 4 KiB leaves at 6 ns (the mean of 2
    and 20), and some 40 tables at 316 ns (100 and 1000)."""
    made = small.simulation(small.scenario())
    costs = made.host.costs
    assert (costs.age_entry_ns, costs.age_table_ns) == (6, 316)
    cost, tables = one_walk(64 * MIB)
    more, more_tables = one_walk(128 * MIB)
    assert more_tables - tables == 32
    # 16384 leaves of data, and 32 tables each of guest and SLAT (the guest's are leaves here).
    assert more - cost == (16_384 + 32) * 6 + 32 * 316


def test_generations_work_in_containers_and_under_shadow_paging() -> None:
    for virtualization in ("none", "shadow"):
        of = small.pressed(
            accesses=60_000, virtualization=virtualization,
            host={"reclaim": {"policy": "mglru"}, "page_size": PAGE},
        )  # fmt: skip
        made = small.simulate(of)
        totals = small.summary_of(made)["host"]["totals"]
        assert totals["swap_ins"] > 0
        assert totals["aging_ns"] > 0
        ledger.audit(made.host)


def scenario(**reclaim: Any) -> Scenario:
    return small.pressed(accesses=3_000, host={"reclaim": {"policy": "mglru", **reclaim}})


def test_a_working_set_that_must_be_kept_brings_the_oom_killer() -> None:
    """Two guests of 96 MiB on 128 MiB: with min_ttl of an hour one is killed, none swaps."""
    kept, usual = (small.result_of(scenario(min_ttl=ttl)) for ttl in (3_600 * S, 0))
    assert kept["host"]["oom_kills"] == 1
    assert usual["host"]["oom_kills"] == 0
    assert usual["host"]["totals"]["swap_outs"] > 1_000


def test_a_run_is_determined_by_its_seed() -> None:
    first, second = (small.run(scenario()) for _ in range(2))
    assert first.summary == second.summary


@pytest.mark.parametrize("policy", ["lru", "mglru"])
def test_huge_folios_are_aged_by_one_bit(policy: str) -> None:
    """As with two lists: 2 MiB pages go out whole, and come back as 4 KiB."""
    made = small.simulate(small.pressed(accesses=5_000, host={"reclaim": {"policy": policy}}))
    summary = small.summary_of(made)["host"]
    assert summary["totals"]["host_splits"] > 0
    assert summary["final"]["backed_4k_bytes"] > 0
    ledger.audit(made.host)
