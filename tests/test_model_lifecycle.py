"""Guests that come and go: arrivals, lifetimes, departures, and what is left of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import scenarios_small as small
from scenarios_small import KIB, MIB, MS, S

from simvm.model import ledger
from simvm.model.clock import Clock
from simvm.model.engine import Simulation
from simvm.model.lifecycle import Population, draw_ns
from simvm.results import RunResult
from simvm.scenario.models import Scenario

ENDLESS = small.phase(accesses=10**9, allocate=2 * MIB, cycles_per_access=10_000)


def idle(**values: Any) -> dict[str, Any]:
    """A class of guests that boot and do nothing."""
    base = {"memory": 4 * MIB, "boot": 64 * KIB, "workload": []}
    return {**base, **values}


def poisson(mean: int) -> dict[str, Any]:
    return {"kind": "poisson", "mean_interval": mean}


def replacement(population: int) -> dict[str, Any]:
    return {"kind": "replacement", "population": population}


def arrivals(made: Simulation) -> list[int | None]:
    return [guest.life.arrived_ns for guest in made.guests]


def rows_of(result: RunResult, index: int, class_: str = "vm") -> Any:
    table = result.timeline.to_pandas()
    chosen = (table["scope"] == "guest") & (table["class"] == class_) & (table["guest"] == index)
    return table[chosen]


# --- when they come, and how long they stay ---------------------------------------------


def test_arrivals_are_a_poisson_process() -> None:
    """Within 10 s at one in 500 ms there are 20 in the mean, and the variance is 20: over 200
    seeds the mean is within 3 · √(20/200), and the variance within 3 · 20 · √(2/199)."""
    counts = []
    for seed in range(200):
        of = small.scenario({"vm": idle(count=80, arrivals=poisson(500 * MS))}, seed=seed)
        at = Population(Clock(), of, "vm")._at
        assert at == sorted(at)
        assert at[-1] > 10 * S
        counts.append(sum(when <= 10 * S for when in at))
    mean = sum(counts) / 200
    variance = sum((count - mean) ** 2 for count in counts) / 199
    assert abs(mean - 20) < 3 * math.sqrt(20 / 200)
    assert abs(variance - 20) < 3 * 20 * math.sqrt(2 / 199)


def test_exponential_times_have_their_mean() -> None:
    """The mean of 400 draws has a standard error of a twentieth."""
    drawn = [draw_ns(1, f"vm.{index}/lifetime", 2 * S) for index in range(400)]
    assert abs(sum(drawn) / 400 - 2 * S) < 3 * 2 * S / 20
    assert len(set(drawn)) == 400
    assert drawn[7] == draw_ns(1, "vm.7/lifetime", 2 * S)


def test_a_population_is_as_large_as_arrivals_and_lifetimes_make_it() -> None:
    """Little's law: one in 50 ms that stays 500 ms makes 10 in the mean. Over 20 s after the
    first two, which is 40 lifetimes: a mean of so long has a standard error of
    √(10 · 2 · 0.5 / 20) = 0.7."""
    vm = idle(
        count=460, arrivals=poisson(50 * MS),
        lifetime={"mean": 500 * MS, "distribution": "exponential"},
    )  # fmt: skip
    of = small.scenario(
        {"vm": vm}, duration=22 * S, warmup=2 * S, sample_interval=50 * MS, host={"cores": 64}
    )
    host = small.result_of(of)["host"]
    assert abs(host["means"]["alive_guests"] - 10) < 3 * 0.7
    assert host["totals"]["arrived_guests"] == pytest.approx(440, abs=3 * math.sqrt(440))
    assert host["totals"]["arrived_guests"] - host["totals"]["departed_guests"] == (
        host["final"]["alive_guests"]
    )


def test_a_member_comes_and_goes_by_the_seed_and_its_name_alone() -> None:
    """Neither more members nor another class move it; another seed does."""

    def lives(count: int, seed: int, *others: str) -> list[tuple[int | None, int | None]]:
        vm = idle(count=count, arrivals=poisson(2 * MS), lifetime={"mean": 3 * MS})
        made = small.simulate(small.scenario(
            {**{name: small.guest() for name in others}, "vm": vm}, duration=60 * MS, seed=seed,
        ))  # fmt: skip
        return [
            (guest.life.arrived_ns, guest.life.departed_ns)
            for guest in made.guests if guest.class_ == "vm"
        ]  # fmt: skip

    first = lives(4, 1)
    assert lives(8, 1, "other")[:4] == first
    assert lives(4, 2) != first
    assert all(stop is not None and stop > start for start, stop in first if start is not None)


def test_the_same_scenario_gives_the_same_bytes() -> None:
    of = small.scenario(
        {"vm": small.guest(ENDLESS, count=5, arrivals=poisson(2 * MS), lifetime={"mean": 3 * MS})},
        duration=20 * MS, sample_interval=MS,
    )  # fmt: skip
    first, second = small.run(of), small.run(of)
    assert first.summary == second.summary
    assert first.timeline.to_pandas().equals(second.timeline.to_pandas())


def test_members_replace_one_another_until_there_are_none_left() -> None:
    """Two at a time stay 4 ms each. Seven members are four generations: the last alone, which is
    gone after 16 ms; so the population is 2, and 1 in the last quarter."""
    vm = idle(count=7, lifetime=4 * MS, arrivals=replacement(2))
    result = small.run(small.scenario({"vm": vm}, sample_interval=MS, duration=18 * MS))
    assert [guest["totals"]["departed_guests"] for guest in result.summary["guests"]] == [1] * 7
    table = result.timeline.to_pandas()
    alive = table[table["scope"] == "class"].set_index("time_ns")["alive_guests"]
    middle = [MS * at for at in range(1, 16) if at % 4]
    assert [alive[at] for at in middle if at < 12 * MS] == [2] * 9
    assert [alive[at] for at in middle if at > 12 * MS] == [1] * 3
    assert alive[17 * MS] == 0


def test_a_member_that_is_killed_is_replaced_too() -> None:
    """Each guest would hold 96 MiB and is killed at its limit of 32 MiB; then comes the next."""
    work = small.phase(allocate=96 * MIB, accesses=2_000, write_fraction=1.0)
    vm = small.guest(
        work, count=3, memory=128 * MIB, memcg={"max": 32 * MIB}, lifetime=10 * S,
        arrivals=replacement(1),
    )  # fmt: skip
    made = small.simulate(small.scenario({"vm": vm}))
    assert [guest.failure for guest in made.guests] == ["killed at its memory limit"] * 3
    times = [(guest.life.arrived_ns, guest.life.departed_ns) for guest in made.guests]
    assert [start for start, _ in times[1:]] == [stop for _, stop in times[:-1]]
    assert made.env.now < S
    ledger.audit(made.host)


def test_nobody_arrives_when_the_class_has_stopped() -> None:
    """Also not those that waited for the members that depart then."""
    for values in ({"arrivals": poisson(3 * MS)}, {"arrivals": replacement(2), "lifetime": 7 * MS}):
        made = small.simulate(small.scenario(
            {"vm": idle(count=40, stop=20 * MS, **values), "other": small.guest(ENDLESS)},
            duration=30 * MS,
        ))  # fmt: skip
        came = [at for at in arrivals(made)[:40] if at is not None]
        assert 4 <= len(came) < 40
        assert max(came) < 20 * MS
        gone = [guest.life.departed_ns for guest in made.guests[: len(came)]]
        assert max(at for at in gone if at is not None) == 20 * MS
        assert made.guests[40].alive


# --- what is left of them ---------------------------------------------------------------


def test_a_guest_that_departs_leaves_nothing() -> None:
    """It is stopped in mid-phase after 10 ms, to the nanosecond, and all it held is free."""
    made = small.simulation(small.scenario(
        {"vm": small.guest(ENDLESS, boot=8 * MIB, vmm_overhead=4 * MIB, lifetime=10 * MS)},
        duration=12 * MS,
    ))  # fmt: skip
    free = made.host.free_bytes
    made.run()
    (guest,) = made.guests
    assert (guest.life.arrived_ns, guest.life.departed_ns) == (0, 10 * MS)
    assert guest.failure is None
    assert guest.peaks["backed_bytes"] > 10 * MIB
    assert made.host.free_bytes == free
    assert made.host.sums[""]["backed_bytes"] == 0
    ledger.audit(made.host)
    (record,) = made.tasks[guest.owner][0].records
    assert record.end_ns == 10 * MS
    assert 0 < record.accesses < 10**9


@pytest.mark.parametrize("at", range(1, 40, 3))
def test_a_guest_may_depart_at_any_moment(at: int) -> None:
    """In its boot, in mid-fault, swapped out, within its limit: the other guest goes on, the
    ledger balances, and no frame or slot is lost."""
    work = small.phase(allocate=96 * MIB, accesses=40_000, cycles_per_access=2_000)
    limits = {"max": 64 * MIB}
    common = {"memory": 128 * MIB, "boot": 8 * MIB, "vmm_overhead": MIB}
    of = small.scenario(
        {
            "vm": small.guest(work, lifetime=at * MS, **common),
            "held": small.guest(work, lifetime=at * MS + 17, memcg=limits, **common),
            "stays": small.guest(work, **common),
        },
        host={"memory": 192 * MIB, "swap": {"device": "nvme", "size": 512 * MIB}}, duration=60 * MS,
    )  # fmt: skip
    made = small.simulate(of)
    first, held, stays = made.guests
    assert first.life.departed_ns == at * MS
    assert held.life.departed_ns == at * MS + 17
    assert stays.alive
    assert made.host.swap.used_bytes == stays.swapped_bytes
    assert (first.swap_outs > 0, first.swap_ins > 0) == (at > 8, at > 30)
    ledger.audit(made.host)


def test_pages_that_were_merged_with_a_guest_outlive_it() -> None:
    """Two guests of equal pages are merged; after the first has gone the frames have one sharer,
    and the other still has all of its 4 MiB."""
    work = small.phase(
        allocate=4 * MIB, accesses=1_024, pattern={"kind": "sequential", "stride": 4 * KIB},
        write_fraction=1.0, cycles_per_access=2_000,
    )  # fmt: skip
    vm = small.guest(
        work, memory=8 * MIB, mergeable=True, content={"duplicate": 1.0}, page_size=4 * KIB,
        count=2, stagger=50 * MS, lifetime=150 * MS,
    )  # fmt: skip
    made = small.simulate(small.scenario(
        {"vm": vm}, duration=180 * MS,
        host={"page_size": 4 * KIB, "ksm": {"pages_to_scan": 4_000, "sleep": MS}},
    ))  # fmt: skip
    gone, stays = made.guests
    assert gone.life.departed_ns == 150 * MS
    assert stays.alive
    assert min(gone.merges, stays.merges) >= 1_024
    assert stays.merged_bytes == made.host.memory.merged_bytes >= 4 * MIB
    ledger.audit(made.host)


# --- what the timeline says -------------------------------------------------------------


def test_a_guest_has_rows_while_it_exists_and_one_more() -> None:
    of = small.scenario(
        {
            "vm": small.guest(ENDLESS, count=2, stagger=5 * MS, lifetime=10 * MS),
            "late": idle(start=30 * MS),
        },
        duration=20 * MS, sample_interval=MS,
    )  # fmt: skip
    result = small.run(of)
    for index, start in enumerate((0, 5 * MS)):
        rows = rows_of(result, index)
        assert list(rows["time_ns"]) == list(range(start, start + 11 * MS, MS))
        assert rows["alive_guests"].iloc[-1] == rows["backed_bytes"].iloc[-1] == 0
        assert rows["departed_guests"].iloc[-1] == 1
        assert all(rows["alive_guests"].iloc[1:-1] == 1)
    assert len(rows_of(result, 0, "late")) == 0
    late = small.one(result, 2)
    assert late["totals"]["arrived_guests"] == late["peaks"]["backed_bytes"] == 0
    assert late["elapsed"]["compute_ns"] == 0


def test_what_a_guest_has_done_stays_in_the_sums() -> None:
    """Rows of a class are sums over all that were ever there, and never fall."""
    vm = small.guest(ENDLESS, count=6, arrivals=poisson(2 * MS), lifetime={"mean": 4 * MS})
    result = small.run(small.scenario({"vm": vm}, duration=30 * MS, sample_interval=MS))
    table = result.timeline.to_pandas()
    for name in ("accesses", "elapsed_ns", "slat_faults", "arrived_guests"):
        of_class = table[table["scope"] == "class"][name]
        assert of_class.is_monotonic_increasing
        whole = sum(guest["totals"][name] for guest in result.summary["guests"])
        assert of_class.iloc[-1] == result.summary["host"]["totals"][name] == whole > 0


# --- what cannot be ---------------------------------------------------------------------

HEAD = """
schema = 1
[scenario]
name = "a"
[host]
cpu = "zen4"
cores = 4
memory = "16GiB"
[guest.g]
memory = "4GiB"
"""
PHASE = """
[[guest.g.workload]]
region = "heap"
allocate = "1GiB"
pattern = { kind = "uniform" }
accesses = 1000
"""


def written(folder: Path, keys: str) -> Path:
    path = folder / "a.toml"
    path.write_text(HEAD + keys + PHASE)
    return path


@pytest.mark.parametrize(
    ("keys", "key", "rule"),
    [
        ('stagger = "1s"', "stagger", "alone"),
        ('count = 2\nstagger = "1s"\narrivals = { kind = "poisson", mean_interval = "1s" }',
         "stagger", "arrivals themselves"),
        ('count = 2\nlifetime = "1s"\narrivals = { kind = "replacement", population = 2 }',
         "arrivals.population", "nobody of 2"),
        ('count = 3\narrivals = { kind = "replacement", population = 2 }', "arrivals",
         "never replaced"),
        ('arrivals = { kind = "poisson" }', "arrivals.mean_interval", "required"),
        ('arrivals = { mean_interval = "1s" }', "arrivals.kind", "required"),
        ('lifetime = "0s"', "lifetime.mean", "more than 0"),
        ('lifetime = { mean = "1s", distribution = "normal" }', "lifetime.distribution",
         "one of fixed, exponential"),
        ('start = "2s"\nstop = "1s"', "stop", "later than start"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(tmp_path: Path, keys: str, key: str, rule: str) -> None:
    (mistake,) = small.check(written(tmp_path, keys))
    assert mistake.key == f"guest.g.{key}"
    assert rule in mistake.rule
    assert mistake.fix


def test_a_lifetime_is_a_time_or_a_table(tmp_path: Path) -> None:
    of = small.load(written(tmp_path, 'lifetime = "2h"'))
    assert of.guests["g"].lifetime == small.load(written(
        tmp_path, 'lifetime = { mean = "2h", distribution = "fixed" }'
    )).guests["g"].lifetime  # fmt: skip
    drawn = small.load(written(tmp_path, 'lifetime = { mean = "2h" }')).guests["g"].lifetime
    assert drawn is not None
    assert drawn.distribution == "exponential"
    assert isinstance(of, Scenario)
