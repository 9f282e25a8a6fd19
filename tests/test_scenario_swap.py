"""What `scenarios/swap_tiers.toml` and `scenarios/ksm.toml` show."""

from __future__ import annotations

from typing import Any

import pytest
from scenario_runs import scenario_runs


@pytest.fixture(scope="module")
def tiers() -> dict[str, dict[str, Any]]:
    runs = scenario_runs()
    return {
        name: runs.summary("swap_tiers", name)["host"]
        for name in ("base", "zram", "zswap", "cxl", "cxl_in_place", "none")
    }


def test_the_tiers_rank_by_the_time_that_a_page_takes_to_come_back(
    tiers: dict[str, dict[str, Any]],
) -> None:
    slowdowns = {name: host["slowdown"] for name, host in tiers.items()}
    ranked = ("cxl_in_place", "cxl", "zram", "zswap", "base")
    assert sorted(ranked, key=lambda name: slowdowns[name]) == list(ranked)
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


def test_what_is_used_in_place_moves_less_and_is_slower_to_access(
    tiers: dict[str, dict[str, Any]],
) -> None:
    """No page comes back, so fewer have to go; what stays there costs at every access."""
    here, back = tiers["cxl_in_place"], tiers["cxl"]
    assert here["final"]["tier_bytes"] > 0
    assert here["totals"]["tier_ns"] > back["totals"]["tier_ns"] == 0
    assert here["totals"]["swap_outs"] < 0.8 * back["totals"]["swap_outs"]


def test_with_nowhere_to_go_a_guest_is_killed(tiers: dict[str, dict[str, Any]]) -> None:
    assert [name for name, host in tiers.items() if host["oom_kills"]] == ["none"]
    assert tiers["none"]["totals"]["swap_outs"] == 0


# --- same-page merging ------------------------------------------------------------------


@pytest.fixture(scope="module")
def ksm() -> dict[str, dict[str, Any]]:
    runs = scenario_runs()
    return {
        name: runs.summary("ksm", name)["host"]
        for name in ("base", "off", "default_rate", "writers", "huge")
    }


def test_merging_gives_back_what_guests_have_in_common(ksm: dict[str, dict[str, Any]]) -> None:
    """Half of the pages have a twin: zeroes (a tenth) in one frame of 256, the rest in one of four.

    So a tenth and three quarters of four tenths: 40 % of what the guests hold, less what was
    written since and what ksmd keeps of each page.
    """
    base, off = (ksm[name]["final"] for name in ("base", "off"))
    held = off["backed_bytes"]
    saved = base["free_bytes"] - off["free_bytes"]
    assert 0.3 * held < saved < 0.4 * held
    merged = base["merged_bytes"] - base["merged_frames_bytes"] - base["merge_metadata_bytes"]
    assert saved == pytest.approx(merged, rel=0.01)
    assert ksm["off"]["totals"]["ksmd_ns"] == 0
    assert ksm["base"]["slowdown"] > ksm["off"]["slowdown"]


def test_at_the_default_rate_a_pass_takes_longer_than_the_run(
    ksm: dict[str, dict[str, Any]],
) -> None:
    slow = ksm["default_rate"]
    assert slow["totals"]["ksm_full_scans"] == slow["totals"]["merges"] == 0
    assert slow["totals"]["ksmd_ns"] > 0
    assert slow["final"]["free_bytes"] < ksm["off"]["final"]["free_bytes"]   # its metadata


def test_writers_take_merged_pages_back_and_pay(ksm: dict[str, dict[str, Any]]) -> None:
    base, writers = ksm["base"], ksm["writers"]
    assert writers["totals"]["unmerges"] > 2 * base["totals"]["unmerges"] > 0
    assert writers["final"]["merged_bytes"] < 0.8 * base["final"]["merged_bytes"]
    assert writers["totals"]["fault_service_ns"] > base["totals"]["fault_service_ns"]


def test_huge_pages_keep_ksmd_from_merging(ksm: dict[str, dict[str, Any]]) -> None:
    huge = ksm["huge"]
    assert huge["final"]["merged_bytes"] < 0.2 * ksm["base"]["final"]["merged_bytes"]
    assert huge["totals"]["host_splits"] > 0
    assert huge["totals"]["merges"] > 0
