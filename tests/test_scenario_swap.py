"""What `scenarios/swap_tiers.toml` shows."""

from __future__ import annotations

from typing import Any

import pytest
from scenario_runs import scenario_runs


@pytest.fixture(scope="module")
def tiers() -> dict[str, dict[str, Any]]:
    runs = scenario_runs()
    return {
        name: runs.summary("swap_tiers", name)["host"]
        for name in ("base", "zram", "zswap", "cxl", "none")
    }


def test_the_tiers_rank_by_the_time_that_a_page_takes_to_come_back(
    tiers: dict[str, dict[str, Any]],
) -> None:
    slowdowns = {name: host["slowdown"] for name, host in tiers.items()}
    assert slowdowns["cxl"] < slowdowns["zram"] < slowdowns["zswap"] < slowdowns["base"]
    each = {
        name: host["totals"]["swap_in_ns"] / host["totals"]["swap_ins"]
        for name, host in tiers.items() if host["totals"]["swap_ins"]
    }  # fmt: skip
    assert each["base"] > 8 * each["zram"]
    assert each["zram"] < each["zswap"] < each["base"]


def test_what_stays_in_ram_makes_more_pages_go(tiers: dict[str, dict[str, Any]]) -> None:
    swapped = {name: host["final"]["swapped_bytes"] for name, host in tiers.items()}
    assert swapped["zram"] > swapped["zswap"] > 1.1 * swapped["base"]
    assert swapped["cxl"] == pytest.approx(swapped["base"], rel=0.05)
    zram = tiers["zram"]["final"]
    assert zram["compressed_pool_bytes"] == pytest.approx(zram["swapped_bytes"] / 3.16, rel=0.05)
    limit = tiers["zswap"]["memory_bytes"] // 10
    assert tiers["zswap"]["peaks"]["compressed_pool_bytes"] <= limit + 4096


def test_with_nowhere_to_go_a_guest_is_killed(tiers: dict[str, dict[str, Any]]) -> None:
    assert [name for name, host in tiers.items() if host["oom_kills"]] == ["none"]
    assert tiers["none"]["totals"]["swap_outs"] == 0
