"""What `scenarios/fragmentation.toml` shows."""

from __future__ import annotations

from typing import Any

import pytest
from scenario_runs import scenario_runs
from scenarios_small import MIB

VARIANTS = ("base", "whole", "direct", "background", "khugepaged", "khugepaged_fast")


@pytest.fixture(scope="module")
def hosts() -> dict[str, dict[str, Any]]:
    runs = scenario_runs()
    return {name: runs.summary("fragmentation", name)["host"] for name in VARIANTS}


def final(hosts: dict[str, dict[str, Any]], gauge: str) -> dict[str, int]:
    return {name: hosts[name]["final"][gauge] for name in VARIANTS}


def test_fragmented_memory_makes_every_walk_one_of_small_pages(hosts: Any) -> None:
    aligned = final(hosts, "aligned_huge_bytes")
    assert aligned["base"] == 0
    assert aligned["whole"] == 512 * MIB
    assert hosts["base"]["slowdown"] > hosts["whole"]["slowdown"] + 0.1
    assert hosts["base"]["loads_per_walk"] > hosts["whole"]["loads_per_walk"]


def test_compaction_on_faults_gives_nearly_all_back_for_part_of_the_time(hosts: Any) -> None:
    """What 512 faults of 4 KiB take is more than to make a block and back it at once."""
    aligned = final(hosts, "aligned_huge_bytes")
    totals = {name: hosts[name]["totals"] for name in VARIANTS}
    assert aligned["direct"] > 0.95 * aligned["whole"]
    assert hosts["direct"]["slowdown"] < hosts["whole"]["slowdown"] * 1.05
    assert totals["direct"]["direct_compaction_ns"] > 0
    service = {name: totals[name]["fault_service_ns"] for name in VARIANTS}
    assert service["whole"] < service["direct"] < service["base"]


def test_kcompactd_comes_too_late_for_part_of_the_faults(hosts: Any) -> None:
    aligned = final(hosts, "aligned_huge_bytes")
    assert aligned["base"] < aligned["background"] < aligned["direct"]
    assert hosts["direct"]["slowdown"] < hosts["background"]["slowdown"] < hosts["base"]["slowdown"]
    assert hosts["background"]["totals"]["kcompactd_ns"] > 0


def test_khugepaged_is_slow_by_default_and_pays_for_being_fast(hosts: Any) -> None:
    slow, fast = hosts["khugepaged"], hosts["khugepaged_fast"]
    assert slow["totals"]["collapses"] == 0
    assert slow["slowdown"] == pytest.approx(hosts["base"]["slowdown"], rel=0.01)
    assert fast["totals"]["collapses"] > 200
    assert fast["slowdown"] < hosts["base"]["slowdown"] - 0.1
    assert fast["totals"]["khugepaged_ns"] > hosts["direct"]["totals"]["direct_compaction_ns"]
    assert fast["totals"]["shootdowns"] >= fast["totals"]["collapses"]
