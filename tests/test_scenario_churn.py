"""What `scenarios/churn.toml` shows."""

from __future__ import annotations

from typing import Any

import pytest
from scenario_runs import scenario_runs

MIB, GIB, S = 1 << 20, 1 << 30, 1_000_000_000
LINE = {"migrate": GIB, "slow_line": 64 * MIB}


@pytest.fixture(scope="module")
def runs() -> dict[str, dict[str, Any]]:
    of = scenario_runs()
    return {name: of.summary("churn", name) for name in of.comparison("churn")}


def lives(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Of guests that have come, in order."""
    found = [guest["life"] for guest in summary["guests"]]
    return [life for life in found if life["arrived_ns"] is not None]


def test_the_same_guests_come_by_either_way(runs: dict[str, dict[str, Any]]) -> None:
    """Arrivals and lifetimes are the seed's: with a fast line as without one, to the few hundred
    ms that a migration takes or waits for."""
    assert set(runs) == {"base", *LINE}
    booted, moved = lives(runs["base"]), lives(runs["migrate"])
    assert len(booted) == len(moved) > 25
    for one, other in zip(booted, moved, strict=True):
        assert 0 <= other["arrived_ns"] - one["arrived_ns"] < S
        if other["migrated_out"] is not None and other["departed_ns"] is not None:
            assert 0 < other["departed_ns"] - one["departed_ns"] < 2 * S


def test_who_migrates_finds_its_memory(runs: dict[str, dict[str, Any]]) -> None:
    """A newcomer brings 128 MiB, which is all that it uses but for a few page tables."""
    base, moved = (runs[name]["host"]["totals"] for name in ("base", "migrate"))
    assert base["slat_faults"] > 40 * base["arrived_guests"]
    assert moved["slat_faults"] <= moved["arrived_guests"]
    assert moved["slat_remaps"] > 30 * moved["arrived_guests"]
    assert moved["fault_stall_ns"] < base["fault_stall_ns"] / 50
    assert runs["migrate"]["host"]["slowdown"] < runs["base"]["host"]["slowdown"]
    came = moved["migrated_in_bytes"] // (128 * MIB)
    assert moved["arrived_guests"] - 2 <= came <= moved["arrived_guests"]


def test_a_guest_that_migrates_holds_more_for_its_work(runs: dict[str, dict[str, Any]]) -> None:
    """The same work within a few percent, on more memory."""
    base, moved = (runs[name]["host"] for name in ("base", "migrate"))
    assert moved["totals"]["accesses"] == pytest.approx(base["totals"]["accesses"], rel=0.05)
    assert moved["means"]["backed_bytes"] > 1.2 * base["means"]["backed_bytes"]


def test_a_slow_line_says_how_many_come_and_go(runs: dict[str, dict[str, Any]]) -> None:
    """From the first arrival on it is busy: 64 MiB a second, in and out together."""
    summary = runs["slow_line"]
    totals = summary["host"]["totals"]
    sent = totals["migrated_in_bytes"] + totals["migrated_out_bytes"]
    busy = summary["scenario"]["simulated_ns"] - lives(summary)[0]["arrived_ns"]
    assert 0.85 * LINE["slow_line"] * busy / S < sent <= LINE["slow_line"] * busy / S
    assert totals["departed_guests"] < runs["migrate"]["host"]["totals"]["departed_guests"] / 2
    assert summary["host"]["means"]["alive_guests"] > 1.3 * (
        runs["migrate"]["host"]["means"]["alive_guests"]
    )
    rounds = [life["migrated_out"]["rounds"] for life in lives(summary) if life["migrated_out"]]
    assert max(rounds) > max(
        life["migrated_out"]["rounds"] for life in lives(runs["migrate"]) if life["migrated_out"]
    )


def test_who_has_left_holds_nothing(runs: dict[str, dict[str, Any]]) -> None:
    for summary in runs.values():
        for guest in summary["guests"]:
            if guest["life"]["departed_ns"] is not None:
                assert guest["final"]["backed_bytes"] == guest["final"]["alive_guests"] == 0
        host = summary["host"]
        here = host["totals"]["arrived_guests"] - host["totals"]["departed_guests"]
        assert host["final"]["alive_guests"] == here
        assert host["oom_kills"] == 0
