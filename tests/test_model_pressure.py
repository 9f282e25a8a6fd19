"""Memory pressure: what is some and what is full, the averages, and who is stalled in a run."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scenarios_small as small
from hypothesis import given
from hypothesis import strategies as st
from scenarios_small import MIB, MS, S

from simvm.hardware import load_costs
from simvm.model.clock import Clock
from simvm.model.policies import ActiveInactive
from simvm.model.pressure import IDLE, RUNNING, STALLED, WAITING, Pressure, Stalls
from simvm.model.refaults import RefaultDistances
from simvm.scenario import failures


class Tasks:
    """A group of `n` running tasks on `cpus` CPUs, and a clock that is set by hand."""

    def __init__(self, n: int, cpus: int) -> None:
        self.env = Clock()
        self.group = Pressure(self.env, cpus)
        self.each = [Stalls(self.group) for _ in range(n)]
        for task in self.each:
            task.run()

    def stall(self, stalled: int, ns: int) -> None:
        """The first `stalled` tasks stall for `ns`, the others run."""
        held = [task.stalled() for task in self.each[:stalled]]
        for stall in held:
            stall.__enter__()
        self.wait(ns)
        for stall in held:
            stall.__exit__(None, None, None)

    def wait(self, ns: int) -> None:
        self.env.run(until=self.env.now + ns)

    def shares(self) -> tuple[float, float]:
        some, full = self.group.totals_ns()
        return some / self.env.now, full / self.env.now


# --- some and full, by hand -------------------------------------------------------------


@pytest.mark.parametrize(
    ("tasks", "cpus", "stalled", "some", "full"),
    [
        (1, 1, 1, 1.0, 1.0),
        (2, 1, 1, 1.0, 0.0),        # the other one has the CPU
        (2, 1, 2, 1.0, 1.0),
        (2, 2, 1, 0.5, 0.5),        # a CPU has nothing to do
        (3, 2, 1, 0.5, 0.0),        # both CPUs have
        (4, 4, 1, 0.25, 0.25),      # the examples of psi.c
        (257, 256, 1, 1 / 256, 0.0),
    ],
)
def test_some_and_full_follow_from_tasks_and_cpus(
    tasks: int, cpus: int, stalled: int, some: float, full: float
) -> None:
    """Stalled half of the time: half of it."""
    group = Tasks(tasks, cpus)
    group.stall(stalled, 3 * S)
    group.wait(3 * S)
    assert group.shares() == pytest.approx((some / 2, full / 2), abs=1e-9)


def test_an_idle_task_is_no_thread_and_one_that_waits_is() -> None:
    """Three on four CPUs: stalled, idle, and at work or waiting for a device: a half."""
    for waiting in (False, True):
        group = Tasks(3, 4)
        group.each[2].rest()
        with group.each[0].stalled():
            if waiting:
                with group.each[1].waiting():
                    group.wait(S)
            else:
                group.wait(S)
        assert group.shares() == (0.5, 0.5)


def test_a_wait_alone_is_no_pressure() -> None:
    group = Tasks(1, 1)
    with group.each[0].waiting():
        group.wait(S)
    assert group.shares() == (0, 0)


def test_a_stall_within_a_stall_counts_once_and_rest_does_not_end_it() -> None:
    group = Tasks(1, 1)
    with group.each[0].stalled():
        with group.each[0].stalled():
            group.wait(S)
        group.each[0].rest()
        group.wait(S)
    group.wait(2 * S)
    assert group.group.totals_ns() == (2 * S, 2 * S)


def test_a_stall_that_an_exception_ends_is_over() -> None:
    group = Tasks(1, 1)

    def fail() -> None:
        with group.each[0].stalled():
            group.wait(S)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    group.wait(S)
    assert group.group.totals_ns() == (S, S)


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, S)), max_size=30),
)
def test_totals_are_the_integral_of_the_formula(
    cpus: int, moves: list[tuple[int, int, int]]
) -> None:
    """Four tasks in any states, against sums of fractions; the division loses less than a ns for
    each number of threads."""
    env = Clock()
    group = Pressure(env, cpus)
    for _ in range(4):
        group.join()
    states, some, full = [IDLE] * 4, Fraction(0), Fraction(0)
    for task, state, ns in moves:
        group.move(states[task], state)
        states[task] = state
        env.run(until=env.now + ns + 1)
        stalled, running = states.count(STALLED), states.count(RUNNING)
        threads = min(stalled + running + states.count(WAITING), cpus)
        if stalled:
            some += Fraction((ns + 1) * min(stalled, threads), threads)
            full += Fraction((ns + 1) * min(threads - min(running, threads), stalled), threads)
    found = group.totals_ns()
    assert some - cpus < found[0] <= some
    assert full - cpus < found[1] <= full <= some
    assert all(0 <= one <= 1 for each in group.averages() for one in each)


# --- averages ---------------------------------------------------------------------------


def test_averages_rise_and_fall_as_exponentials_do() -> None:
    """All stalled for 60 s: 1 - exp(-t / window); then nobody: times exp(-t / window)."""
    group = Tasks(2, 2)
    group.stall(2, 60 * S)
    some, full = group.group.averages()
    assert some == full
    assert some == pytest.approx([1 - math.exp(-60 / t) for t in (10, 60, 300)], abs=0.005)
    group.wait(20 * S)
    fallen = group.group.averages()[0]
    risen = zip((10, 60, 300), some, strict=True)
    assert fallen == pytest.approx([one * math.exp(-20 / t) for t, one in risen], abs=0.005)


def test_averages_of_a_constant_share_are_that_share() -> None:
    """One of four tasks is stalled at any time, for an hour."""
    group = Tasks(4, 4)
    group.stall(1, 3600 * S)
    assert group.group.averages()[0] == pytest.approx((0.25, 0.25, 0.25), abs=1e-4)


def test_averages_know_the_last_whole_period_alone() -> None:
    """From 1 s on stalled: nothing at 1.9 s, a half of one period at 2 s and at 3.9 s."""
    group = Tasks(1, 1)
    group.wait(S)
    with group.each[0].stalled():
        group.wait(900 * MS)
        assert group.group.averages()[0] == (0, 0, 0)
        group.wait(100 * MS)
        first = group.group.averages()[0]
        assert first == pytest.approx([0.5 * (1 - math.exp(-2 / t)) for t in (10, 60, 300)],
                                      abs=0.001)  # fmt: skip
        group.wait(1900 * MS)
        assert group.group.averages()[0] == first


def test_a_long_quiet_time_costs_little_and_leaves_nothing() -> None:
    group = Tasks(1, 1)
    group.stall(1, 10 * S)
    group.env.run(until=10**18)     # thirty years, in periods of 2 s
    assert group.group.averages() == ((0, 0, 0), (0, 0, 0))
    group.stall(1, 4 * S)
    assert group.group.totals_ns() == (14 * S, 14 * S)
    assert group.group.averages()[0][0] == pytest.approx(1 - math.exp(-0.4), abs=0.005)


# --- in a run ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pressed() -> Any:
    return small.run(small.pressed(sample_interval=MS))


def test_a_vcpu_is_stalled_in_direct_reclaim_and_in_reads_of_its_working_set(pressed: Any) -> None:
    """Guests of one vCPU: all the time that is stalled, and no other."""
    for guest in pressed.summary["guests"]:
        totals = guest["totals"]
        assert totals["psi_some_ns"] == totals["psi_full_ns"] > 0
        assert totals["direct_reclaim_ns"] < totals["psi_some_ns"]
        stalls = totals["direct_reclaim_ns"] + totals["swap_in_ns"] + totals["core_wait_ns"]
        assert totals["psi_some_ns"] <= stalls
        # What the guest cannot see does not press it.
        assert totals["guest_psi_some_ns"] == totals["guest_psi_full_ns"] == 0
        assert guest["psi_some"] == totals["psi_some_ns"] / pressed.summary["scenario"][
            "simulated_ns"]  # fmt: skip


def test_reads_of_the_working_set_are_stalls_to_the_nanosecond() -> None:
    """One vCPU and enough cores, and every page that came back was of the working set: direct
    reclaim, and swap-in without the CPU time after each read, which is no stall."""
    summary = small.result_of(small.pressed(guests=1, memory=80 * MIB, accesses=8_000))
    totals = summary["guests"][0]["totals"]
    assert totals["refaults"] == totals["swap_ins"] > 100
    assert totals["core_wait_ns"] == 0
    mapping = totals["swap_ins"] * load_costs().swap_fault_ns
    stalled = totals["direct_reclaim_ns"] + totals["swap_in_ns"] - mapping
    assert totals["psi_some_ns"] == totals["psi_full_ns"] == stalled


def test_pages_that_are_not_of_the_working_set_are_waited_for_without_pressure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same, where the policy takes none for one: direct reclaim alone is left."""
    monkeypatch.setattr(ActiveInactive, "working_set_pages", lambda *_: -1)
    summary = small.result_of(small.pressed(guests=1, memory=80 * MIB, accesses=8_000))
    totals = summary["guests"][0]["totals"]
    assert totals["refaults"] == 0 < totals["swap_ins"]
    assert totals["psi_some_ns"] == totals["direct_reclaim_ns"]


def test_the_hosts_pressure_is_that_of_its_guests_and_kswapd(pressed: Any) -> None:
    """Two vCPUs and kswapd on four cores are three threads at most: of what a guest's own group
    shows, whose one thread is its vCPU, a third or more is the host's."""
    host = pressed.summary["host"]["totals"]
    guests = [guest["totals"]["psi_some_ns"] for guest in pressed.summary["guests"]]
    assert host["psi_some_ns"] >= host["psi_full_ns"] > 0
    assert host["psi_some_ns"] >= sum(guests) / 3
    mean = sum(guests) / len(guests) / pressed.summary["scenario"]["simulated_ns"]
    assert pressed.summary["classes"]["vm"]["psi_some"] == pytest.approx(mean)


def test_a_roomy_host_has_no_pressure() -> None:
    result = small.run(small.pressed(memory=512 * MIB, sample_interval=MS))
    host = result.timeline.host()
    for name in ("psi_some", "psi_full", "psi_some_avg10", "psi_some_ns"):
        assert not host.values(name)[1:].any(), name
    assert result.summary["host"]["psi_some"] == 0


def test_intervals_add_up_to_the_total(pressed: Any) -> None:
    for rows in (pressed.timeline.host(), pressed.timeline.guest("vm", 1)):
        times, shares = rows.values("time_ns"), rows.values("psi_some")
        assert math.isnan(shares[0])
        assert ((shares[1:] >= 0) & (shares[1:] <= 1)).all()
        assert (rows.values("psi_full")[1:] <= shares[1:]).all()
        total = (shares[1:] * np.diff(times)).sum()
        assert total == pytest.approx(rows.values("psi_some_ns")[-1], rel=1e-9)


def test_pauses_and_idle_vcpus_are_no_threads() -> None:
    """A second vCPU without work does not halve the pressure of the first."""
    alone, beside = (
        small.one(small.run(small.pressed(vcpus=vcpus)))["totals"] for vcpus in (1, 2)
    )
    assert alone["psi_some_ns"] == beside["psi_some_ns"] > 0


def test_peaks_are_the_highest_of_the_timeline(pressed: Any) -> None:
    summary, timeline = pressed.summary, pressed.timeline
    for peaks, rows in (
        (summary["host"]["peaks"], timeline.host()),
        (summary["guests"][1]["peaks"], timeline.guest("vm", 1)),
    ):
        assert peaks["psi_some"] == rows.values("psi_some")[1:].max() > 0.1
        assert peaks["psi_full_avg300"] == rows.values("psi_full_avg300").max()
    assert not any("psi" in name for name in summary["classes"]["vm"]["peaks"])
    assert failures(summary, {"host.psi_some": "< 0", "host.peak_psi_some": "> 0.1"}) == [
        f"host.psi_some is {summary['host']['psi_some']:.6g}, expected < 0"
    ]


def test_a_guest_that_runs_short_by_itself_is_under_a_pressure_of_its_own() -> None:
    """320 MiB of a program in a guest of 256 MiB that swaps, on a host with room for all: the
    guest's kernel sees stalls, and its kswapd's; the host has none."""
    work = small.phase(allocate=320 * MIB, accesses=20_000)
    swap = {"device": "nvme", "size": 512 * MIB}
    short = small.result({"vm": small.guest(work, memory=256 * MIB, swap=swap)})
    totals = small.one(short)["totals"]
    assert totals["psi_some_ns"] == totals["psi_full_ns"] == 0
    assert 0 < totals["guest_psi_full_ns"] <= totals["guest_psi_some_ns"]
    assert short.summary["host"]["psi_some"] == 0
    roomy = small.result({"vm": small.guest(work, memory=512 * MIB, swap=swap)})
    assert small.one(roomy)["totals"]["guest_psi_some_ns"] == 0


# --- refault distances ------------------------------------------------------------------


def test_distances_are_counted_by_powers_of_two() -> None:
    """1, 2, 3 and 4, 5 pages: up to 4, 8, 16 and 32 KiB."""
    distances = RefaultDistances()
    for pages in (1, 2, 3, 4, 5):
        distances.add(pages)
    summary = RefaultDistances.sum([distances, distances]).summary()
    assert summary["count"] == 10
    assert summary["mean_bytes"] == 3 * 4096
    assert summary["histogram"] == [
        {"up_to_bytes": 4096, "count": 2}, {"up_to_bytes": 8192, "count": 2},
        {"up_to_bytes": 16384, "count": 4}, {"up_to_bytes": 32768, "count": 2},
    ]  # fmt: skip
    assert RefaultDistances().summary() == {"count": 0, "mean_bytes": None, "histogram": []}


def test_every_page_that_comes_back_has_a_distance(pressed: Any) -> None:
    host = pressed.summary["host"]
    assert host["refault_distance"]["count"] == host["totals"]["swap_ins"] > 0
    of_guests = [guest["refault_distance"]["count"] for guest in pressed.summary["guests"]]
    assert sum(of_guests) == host["refault_distance"]["count"]
