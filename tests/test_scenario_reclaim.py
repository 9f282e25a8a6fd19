"""What `scenarios/reclaim_shootout.toml` shows."""

from __future__ import annotations

from typing import Any

import pytest
from scenario_runs import scenario_runs
from scenarios_small import MIB, PAGE


@pytest.fixture(scope="module")
def hosts() -> dict[str, dict[str, Any]]:
    runs = scenario_runs()
    return {
        name: runs.summary("reclaim_shootout", name)["host"]
        for name in ("base", "mglru", "damon", "roomy")
    }


def reclaim_ns(host: dict[str, Any]) -> int:
    totals = host["totals"]
    return int(totals["kswapd_ns"] + totals["direct_reclaim_ns"])


def before_the_pass(variant: str, column: str) -> int:
    """The host's value at the last sample before the first guest's pass begins."""
    runs = scenario_runs()
    guest, *_ = runs.summary("reclaim_shootout", variant)["guests"]
    (begins,) = (phase["start_ns"] for phase in guest["phases"] if phase["name"] == "pass")
    timeline = runs.host("reclaim_shootout", variant)
    times = timeline.values("time_ns")
    return int(timeline.values(column)[int((times <= begins).sum()) - 1])


def test_a_pass_over_cold_memory_pollutes_generations_least(
    hosts: dict[str, dict[str, Any]],
) -> None:
    base, mglru = hosts["base"], hosts["mglru"]
    assert mglru["totals"]["swap_ins"] < 0.5 * base["totals"]["swap_ins"]
    assert mglru["slowdown"] < base["slowdown"]
    assert reclaim_ns(mglru) < 0.5 * reclaim_ns(base)
    assert mglru["totals"]["aging_ns"] < 0.4 * base["totals"]["aging_ns"]


def test_damon_takes_cold_memory_before_it_is_short(hosts: dict[str, dict[str, Any]]) -> None:
    """40 MiB and more of the 160 MiB that are cold, for a tenth of what reclaim costs in base."""
    assert before_the_pass("damon", "swapped_bytes") > 40 * MIB
    assert before_the_pass("damon", "kswapd_ns") == 0
    # What came back are cold pages that were used after all: one access in a thousand.
    assert before_the_pass("damon", "swap_ins") < 0.1 * before_the_pass("damon", "swap_outs")
    assert before_the_pass("base", "swapped_bytes") == 0
    totals = hosts["damon"]["totals"]
    assert totals["damon_pages"] * PAGE < 161 * MIB
    assert totals["damon_ns"] < 0.1 * reclaim_ns(hosts["base"])
    assert totals["damon_hits"] > 0.5 * totals["damon_probes"]
    assert totals["kswapd_ns"] < hosts["base"]["totals"]["kswapd_ns"]


def test_damon_does_not_hold_the_pass_up(hosts: dict[str, dict[str, Any]]) -> None:
    """Below its low watermark the lists are those of base, and pages come back as there."""
    assert hosts["damon"]["totals"]["swap_ins"] > 2 * hosts["mglru"]["totals"]["swap_ins"]


def test_with_room_for_all_nobody_looks(hosts: dict[str, dict[str, Any]]) -> None:
    totals = hosts["roomy"]["totals"]
    assert totals["swap_outs"] == totals["aging_ns"] == totals["kswapd_ns"] == 0
    assert hosts["roomy"]["slowdown"] < min(hosts[name]["slowdown"] for name in ("base", "mglru"))
