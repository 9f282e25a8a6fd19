"""Tasks and phases: closed and open loop, threads, repetition, pauses, and host cores."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import scenarios_small as small
from scenarios_small import BLOCK, MIB, MS, PAGE, US, S

from simvm.model.tasks import share_of
from simvm.scenario.models import Phase

POPULATE = small.phase(
    name="populate", allocate=8 * MIB, accesses=2_048, measure=False,
    pattern={"kind": "sequential", "stride": PAGE},
)  # fmt: skip
SERVICE_NS = 1_000
"""Of a request: 20 accesses of 100 cycles, at the 2 GHz of the set."""


def requests(rate: int, *, duration: int = 100 * MS, **values: Any) -> dict[str, Any]:
    """A phase of the open loop, on memory that is populated and within the TLB's reach."""
    return small.phase(
        name="serve", allocate=None, accesses=None, rate=rate, duration=duration,
        accesses_per_request=20, cycles_per_access=100, **values,
    )  # fmt: skip


def open_loop(rate: int, **values: Any) -> dict[str, Any]:
    """What the summary says of an open loop alone on its host."""
    threads = values.get("threads", 1)
    result = small.result({"vm": small.guest(POPULATE, requests(rate, **values), vcpus=threads)})
    (served,) = (each for each in small.one(result)["phases"] if each["name"] == "serve")
    found: dict[str, Any] = served
    return found


def test_the_service_of_a_request_is_what_its_accesses_cost() -> None:
    made = small.simulation(small.scenario())
    assert 20 * 100 * 1_000_000 // made.host.cpu.frequency_khz == pytest.approx(SERVICE_NS, rel=0.3)
    served = open_loop(10_000)
    service = 20 * 100 * 1_000_000 / made.host.cpu.frequency_khz
    assert served["service_ns"] == pytest.approx(service, rel=0.05)
    assert served["elapsed_ns"] / served["ideal_ns"] == pytest.approx(1, abs=0.05)


def test_requests_are_poisson() -> None:
    """20,000 a second for 0.5 s: 10,000 within 4 sigma, all served; rate is per guest."""
    served = open_loop(20_000, duration=S // 2)
    assert abs(served["requests"] - 10_000) < 4 * sqrt(10_000)
    assert served["accesses"] == 20 * served["requests"]
    assert served["end_ns"] - served["start_ns"] >= S // 2


def test_waits_grow_with_utilisation_as_m_d_1() -> None:
    """Wq = rho s / (2 (1 - rho)); latency counts from arrival, elapsed only while served."""
    low, high = open_loop(100_000), open_loop(800_000)
    for served in (low, high):
        service = served["service_ns"]
        rate = 1e-9 * served["requests"] / (100 * MS / 1_000_000_000) / 1
        rho = rate * service
        wait = served["latency_ns"]["mean"] - service
        assert wait == pytest.approx(rho * service / (2 * (1 - rho)), rel=0.15, abs=5)
        assert served["latency_ns"]["p50"] >= 0.99 * service
        assert served["latency_ns"]["p99"] >= served["latency_ns"]["p50"]
        assert served["elapsed_ns"] == pytest.approx(served["requests"] * service)
    assert high["latency_ns"]["mean"] > 1.5 * low["latency_ns"]["mean"]
    assert high["slowdown"] == pytest.approx(low["slowdown"], rel=0.02)


def test_an_overloaded_loop_serves_what_came_after_arrivals_end() -> None:
    served = open_loop(2_000_000, duration=2 * MS)
    assert served["requests"] > 3_500
    assert served["end_ns"] - served["start_ns"] > 2.5 * MS
    assert served["latency_ns"]["p99"] > 1 * MS


def test_two_threads_serve_twice_as_much() -> None:
    one = open_loop(1_200_000, duration=5 * MS)
    two = open_loop(1_200_000, duration=5 * MS, threads=2)
    assert two["requests"] == one["requests"]  # arrivals do not depend on who serves them
    assert two["latency_ns"]["mean"] < 0.2 * one["latency_ns"]["mean"]


# --- closed loop ------------------------------------------------------------------------


@pytest.mark.parametrize(("accesses", "threads"), [(10, 3), (9, 3), (2, 4)])
def test_threads_share_accesses_out(accesses: int, threads: int) -> None:
    phase = Phase.model_validate(
        {"name": "x", **small.phase(accesses=accesses, threads=threads)}
    )
    shares = [share_of(phase, number) for number in range(threads)]
    assert sum(shares) == accesses
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)


def test_two_threads_take_half_the_time() -> None:
    runs = [
        small.result({"vm": small.guest(
            POPULATE, small.phase(name="run", allocate=None, accesses=200_000, threads=threads),
            vcpus=2,
        )})
        for threads in (1, 2)
    ]  # fmt: skip
    one, two = (small.one(run)["phases"][1] for run in runs)
    assert one["accesses"] == two["accesses"] == 200_000
    assert one["ideal_ns"] == pytest.approx(two["ideal_ns"], abs=1)
    wall = [each["end_ns"] - each["start_ns"] for each in (one, two)]
    assert wall[1] == pytest.approx(wall[0] / 2, rel=0.05)


def test_tasks_run_side_by_side_and_phases_of_a_task_in_order() -> None:
    phases = [
        small.phase(name="a1", region="a", task="a", allocate=4 * MIB),
        small.phase(name="a2", region="a", task="a", allocate=None),
        small.phase(name="b1", region="b", task="b", allocate=4 * MIB, accesses=60_000),
    ]
    a1, a2, b1 = small.one(small.result({"vm": small.guest(*phases, vcpus=2)}))["phases"]
    assert [each["name"] for each in (a1, a2, b1)] == ["a1", "a2", "b1"]
    assert a1["start_ns"] == b1["start_ns"]
    assert a1["end_ns"] == a2["start_ns"]
    assert b1["start_ns"] < a2["start_ns"] < b1["end_ns"]
    assert a1["counters"]["accesses"] == a2["counters"]["accesses"] == 20_000
    assert b1["counters"]["accesses"] == 60_000


def test_repetitions_start_every_so_often() -> None:
    work = small.phase(allocate=4 * MIB, accesses=1_000, free="all", repeat=3, every=7 * MS)
    phases = small.one(small.result({"vm": small.guest(work)}))["phases"]
    first = phases[0]["start_ns"]
    assert [each["start_ns"] - first for each in phases] == [0, 7 * MS, 14 * MS]
    assert [each["repetition"] for each in phases] == [0, 1, 2]


def test_a_late_repetition_starts_at_once() -> None:
    work = small.phase(allocate=4 * MIB, accesses=50_000, free="all", repeat=3, every=1)
    phases = small.one(small.result({"vm": small.guest(work)}))["phases"]
    assert [each["start_ns"] for each in phases[1:]] == [each["end_ns"] for each in phases[:-1]]


@pytest.mark.parametrize("free", ["none", BLOCK, "all"])
def test_what_a_phase_frees(free: Any) -> None:
    """Touched counts pages that are still allocated."""
    work = small.phase(
        allocate=4 * MIB, accesses=1_024, pattern={"kind": "sequential", "stride": PAGE}, free=free
    )
    made = small.simulate(small.scenario({"vm": small.guest(work, page_size=PAGE)}))
    left = {"none": 4 * MIB, BLOCK: 2 * MIB, "all": 0}[free]
    regions = small.summary_of(made)["guests"][0]["regions"]
    assert sum(region["bytes"] for region in regions) == left
    assert sum(region["touched_bytes"] for region in regions) == left


def test_a_phase_that_does_not_count_is_left_out_of_the_headline() -> None:
    run = small.phase(name="run", allocate=None, accesses=50_000)
    both = small.one(small.result({"vm": small.guest({**POPULATE, "measure": True}, run)}))
    served = small.one(small.result({"vm": small.guest(POPULATE, run)}))
    assert both["slowdown"] > 2 * served["slowdown"]
    assert served["slowdown"] == pytest.approx(served["phases"][1]["slowdown"])
    assert both["totals"]["elapsed_ns"] == served["totals"]["elapsed_ns"]


def test_the_exposed_share_of_a_walk_is_charged() -> None:
    """Half the translation time for half the share; compute stays."""
    parts = [
        small.one(small.result({"vm": small.guest(
            small.phase(allocate=256 * MIB, accesses=100_000, walk_exposed=exposed),
            page_size=PAGE,
        )}))["elapsed"]
        for exposed in (1.0, 0.5, 0.0)
    ]  # fmt: skip
    assert parts[0]["translation_ns"] == pytest.approx(2 * parts[1]["translation_ns"], rel=1e-3)
    assert parts[2]["translation_ns"] == 0
    assert parts[0]["compute_ns"] == parts[1]["compute_ns"] == parts[2]["compute_ns"]


def test_a_program_accesses_what_it_asked_for_whatever_the_size_of_pages() -> None:
    """3 MiB in guest pages of 2 MiB: two of them are mapped, 3 MiB are accessed."""
    work = small.phase(allocate=3 * MIB, accesses=20_000)
    made = small.simulate(small.scenario({"vm": small.guest(work)}))
    (region,) = small.summary_of(made)["guests"][0]["regions"]
    assert region["bytes"] == 4 * MIB
    assert region["touched_bytes"] == 3 * MIB


# --- host cores -------------------------------------------------------------------------


def on_cores(cores: int, **values: Any) -> dict[str, Any]:
    """Four guests of one vCPU, each of 5 ms of work in memory that is populated."""
    run = small.phase(name="run", allocate=None, accesses=500_000)
    result = small.result(
        {"vm": small.guest(POPULATE, run, count=4, **values)}, host={"cores": cores}
    )
    return result.summary


def test_too_few_cores_make_vcpus_wait() -> None:
    ample, half, one = on_cores(4), on_cores(2), on_cores(1)
    assert ample["host"]["totals"]["core_wait_ns"] == 0
    times = [run["scenario"]["simulated_ns"] for run in (ample, half, one)]
    assert times[1] == pytest.approx(2 * times[0], rel=0.05)
    assert times[2] == pytest.approx(4 * times[0], rel=0.05)
    assert one["host"]["slowdown"] == pytest.approx(4 * ample["host"]["slowdown"], rel=0.15)
    for run in (half, one):
        wait = run["host"]["totals"]["core_wait_ns"]
        # All wait while others run; those that end first wait no more.
        assert 0.5 * run["host"]["totals"]["compute_ns"] < wait
        slowest, fastest = (
            pick(guest["elapsed"]["core_wait_ns"] for guest in run["guests"]) for pick in (max, min)
        )
        assert fastest > 0.6 * slowest  # time slices are shared out fairly


def test_more_vcpus_than_cores_do_no_more_in_a_time() -> None:
    """One core is busy nearly always, and never twice at once."""
    summary = on_cores(1)
    totals = summary["host"]["totals"]
    busy = totals["elapsed_ns"] - totals["core_wait_ns"]
    assert 0.97 * summary["scenario"]["simulated_ns"] < busy
    assert busy <= summary["scenario"]["simulated_ns"]


def test_a_vcpu_that_thinks_leaves_its_core() -> None:
    """Two guests that pause most of the time hardly notice that they share a core."""
    run = small.phase(name="run", allocate=None, accesses=2_000, think_time=5 * US)
    result = small.result(
        {"vm": small.guest(POPULATE, run, count=2, stagger=4 * MS)}, host={"cores": 1}
    )
    first, second = (guest["phases"][1] for guest in result.summary["guests"])
    assert first["start_ns"] < second["start_ns"] < first["end_ns"]
    assert second["parts"]["think_ns"] == 2_000 * 5 * US
    assert second["parts"]["core_wait_ns"] < 0.02 * second["parts"]["think_ns"]
    assert second["slowdown"] < 1.05
