"""The shipped scenarios, run as they are: what README and docs say of them, from the runs.

The runs are made once, by `python -m simvm scenario` in processes of their own.
"""

import importlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
from scenario_runs import ROOT, refresh, scenario_runs

from simvm import scenario
from simvm.hardware import load_cpu
from simvm.hardware.geometry import ORDER_BYTES
from simvm.workload import builtin_trace, trace_info

NAMES = (
    "passthrough", "overcommit", "trace", "swap_tiers", "ksm", "fragmentation", "reclaim_shootout",
    "give_back", "churn",
)  # fmt: skip
KILLS = {("swap_tiers", "none")}  # variants that show the OOM killer
MOST_ACCESSES = 120_000_000
LARGE = ("base", "thp", "hugetlb", "container")  # of passthrough: those with 2 MiB host pages


@pytest.fixture(scope="session")
def runs() -> Any:
    return scenario_runs()


@pytest.fixture(scope="session")
def passthrough(runs: Any) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = runs.comparison("passthrough")
    return found


@pytest.fixture(scope="session")
def overcommit(runs: Any) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = runs.comparison("overcommit")
    return found


@pytest.fixture(scope="session")
def trace(runs: Any) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = runs.comparison("trace")
    return found


def file_of(name: str) -> Path:
    return ROOT / "scenarios" / f"{name}.toml"


# --- the files --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_they_have_no_mistakes_and_open_with_their_question(name: str) -> None:
    assert scenario.check(file_of(name)) == []
    text = file_of(name).read_text("utf-8")
    comment = text.split("schema")[0]
    assert comment.startswith("# ")
    assert "?" in comment
    assert "Look for:" in comment
    assert tomllib.loads(text)["scenario"]["question"].endswith("?")


@pytest.mark.parametrize("name", NAMES)
def test_all_variants_together_are_no_more_than_a_minute_of_accesses(name: str) -> None:
    total = 0
    for resolved in scenario.variants(file_of(name)).values():
        for guest in resolved.guests.values():
            total += guest.count * sum((p.accesses or 0) * p.repeat for p in guest.workload)
    assert 0 < total <= MOST_ACCESSES


@pytest.mark.parametrize("name", ["passthrough", "overcommit"])
def test_the_heap_exceeds_what_the_tlb_covers_with_2m_pages(name: str) -> None:
    resolved = scenario.load(file_of(name))
    arrays = [array for array in load_cpu(resolved.host.cpu).geometry.l2 if 1 in array.orders]
    reach = sum(array.entries for array in arrays) * ORDER_BYTES[1]
    assert reach > 0
    for guest in resolved.guests.values():
        made = {p.region: p.allocate for p in guest.workload if p.allocate is not None}
        measured = [p for p in guest.workload if p.measure]
        assert measured
        assert all(made[p.region] >= 1.5 * reach for p in measured)


def test_passthrough_compares_the_five_ways() -> None:
    found = scenario.variants(file_of("passthrough"))
    ways = {
        name: (guest.virtualization, guest.page_size, guest.zeroing, guest.channel.kind)
        for name, resolved in found.items() for guest in resolved.guests.values()
    }  # fmt: skip
    four, two, one = ORDER_BYTES
    assert ways == {
        "base": ("nested", one, "none", "passthrough"),
        "pages_4k": ("nested", four, "guest", "none"),
        "thp": ("nested", two, "guest", "none"),
        "hugetlb": ("nested", one, "guest", "none"),
        "container": ("none", one, "none", "none"),
    }
    hosts = {name: resolved.host.page_size for name, resolved in found.items()}
    assert hosts == dict.fromkeys(LARGE, two) | {"pages_4k": four}


# --- what the documentation says --------------------------------------------------------


@pytest.mark.parametrize("name", ["worked example", "findings"])
def test_the_readme_says_what_the_runs_came_to(name: str, runs: Any) -> None:
    """`python -m docs.refresh` rewrites these blocks."""
    rendered = refresh().measured_blocks(runs)["README.md", name]
    assert refresh().block((ROOT / "README.md").read_text("utf-8"), name) == rendered


# --- passthrough ------------------------------------------------------------------------


def test_every_run_ended_by_itself_and_killed_nobody(runs: Any) -> None:
    for name in NAMES:
        for variant, row in runs.comparison(name).items():
            assert (row["oom_kills"] > 0) == ((name, variant) in KILLS), (name, variant)
            assert runs.summary(name, variant)["scenario"]["partial"] is False


def test_all_variants_draw_the_same_accesses(runs: Any) -> None:
    digests = {
        tuple(guest["stream_digest"] for guest in runs.summary("passthrough", name)["guests"])
        for name in runs.comparison("passthrough")
    }
    assert len(digests) == 1
    (each,) = digests
    assert len(set(each)) == 4  # and no two guests the same


def test_passthrough_has_the_reach_of_thp_and_no_more(
    passthrough: dict[str, dict[str, Any]],
) -> None:
    misses = {name: row["tlb_misses_per_kaccess"] for name, row in passthrough.items()}
    assert misses["base"] > 20
    for name in LARGE:
        assert misses[name] == pytest.approx(misses["base"], rel=0.001)
    assert misses["pages_4k"] > 2 * misses["base"]


def test_passthrough_walks_less_than_thp_and_a_container_less_than_all(
    passthrough: dict[str, dict[str, Any]],
) -> None:
    for key in ("loads_per_walk", "cycles_per_walk", "slowdown"):
        values = {name: row[key] for name, row in passthrough.items()}
        assert values["container"] < values["base"] < 0.95 * values["thp"] < values["pages_4k"], key
        assert values["hugetlb"] == pytest.approx(values["base"], rel=0.01), key


def test_passthrough_has_smaller_tables_than_thp(
    runs: Any, passthrough: dict[str, dict[str, Any]]
) -> None:
    base, thp = passthrough["base"], passthrough["thp"]
    assert base["peak_tables_bytes"] < thp["peak_tables_bytes"]
    # A page table of 4 KiB for each GiB of heap, arena and scratch, which 1 GiB leaves do not need.
    tables = {
        name: runs.summary("passthrough", name)["host"]["peaks"]["guest_tables_bytes"]
        for name in ("base", "thp")
    }
    saved = tables["thp"] - tables["base"]
    assert 4 * (9 + 4) * 4096 <= saved <= 4 * (9 + 4 + 2 + 1) * 4096
    # And THP keeps a page table in reserve for each 2 MiB that a guest maps.
    kept = thp["peak_deposited_tables_bytes"] - base["peak_deposited_tables_bytes"]
    assert kept > 4 * 9 * 512 * 4096


def test_hugetlb_backs_all_and_passthrough_what_is_touched(
    runs: Any, passthrough: dict[str, dict[str, Any]]
) -> None:
    """Every fourth 2 MiB of the arena is used: zeroing makes the host back the rest as well."""
    regions = {
        name: {r["name"]: r for g in runs.summary("passthrough", name)["guests"]
               for r in g["regions"]}
        for name in ("base", "hugetlb")
    }  # fmt: skip
    for name, share in (("base", 0.25), ("hugetlb", 1.0)):
        arena = regions[name]["arena"]
        assert arena["backed_2m_bytes"] == share * arena["bytes"], name
        assert arena["backed_4k_bytes"] == arena["backed_1g_bytes"] == 0
    arena = regions["base"]["arena"]["bytes"]
    saved = passthrough["hugetlb"]["peak_backed_bytes"] - passthrough["base"]["peak_backed_bytes"]
    assert saved >= 4 * 0.75 * arena * 0.95
    assert passthrough["hugetlb"]["peak_touched_bytes"] == pytest.approx(
        passthrough["base"]["peak_touched_bytes"], rel=0.01
    )


def test_only_the_channel_gives_freed_memory_back(runs: Any) -> None:
    peaks = {
        name: runs.summary("passthrough", name)["host"]["peaks"]["stranded_bytes"]
        for name in ("base", "thp", "hugetlb")
    }
    assert peaks["base"] < 64 << 20
    assert min(peaks["thp"], peaks["hugetlb"]) > 1 << 30


def test_small_pages_hold_least_and_are_slowest(passthrough: dict[str, dict[str, Any]]) -> None:
    small = passthrough["pages_4k"]
    assert small["peak_backed_bytes"] * 5 < min(
        row["peak_backed_bytes"] for name, row in passthrough.items() if name != "pages_4k"
    )
    assert small["slowdown"] == max(row["slowdown"] for row in passthrough.values())


# --- overcommit -------------------------------------------------------------------------


def test_the_host_is_promised_at_150_percent() -> None:
    resolved = scenario.load(file_of("overcommit"))
    promised = sum(guest.count * guest.memory for guest in resolved.guests.values())
    assert promised == 1.5 * resolved.host.memory


def test_pressure_makes_walks_longer_and_guests_slower(
    overcommit: dict[str, dict[str, Any]],
) -> None:
    base, roomy, slow = (overcommit[name] for name in ("base", "roomy", "slow_swap"))
    assert roomy["swap_outs"] == roomy["swap_ins"] == 0
    assert base["swap_outs"] > 0
    assert base["swap_ins"] > 0
    assert base["loads_per_walk"] > 1.2 * roomy["loads_per_walk"]
    assert base["cycles_per_walk"] > 1.2 * roomy["cycles_per_walk"]
    assert base["tlb_misses_per_kaccess"] > 1.5 * roomy["tlb_misses_per_kaccess"]
    assert base["slowdown"] > 1.5 * roomy["slowdown"]
    assert slow["slowdown"] > 1.5 * base["slowdown"]
    assert roomy["slowdown"] < 1.1


def test_the_timeline_shows_huge_pages_break(runs: Any) -> None:
    host = runs.host("overcommit", "base")
    large, small = host.values("backed_2m_bytes"), host.values("backed_4k_bytes")
    assert small[0] == 0
    assert large[-1] < 0.7 * large.max()
    assert small[-1] > 1 << 30
    roomy = runs.host("overcommit", "roomy")
    assert roomy.values("backed_4k_bytes").max() == 0
    assert roomy.values("backed_2m_bytes")[-1] == roomy.values("backed_2m_bytes").max()


def test_after_reclaim_guests_stay_slow_without_swapping(runs: Any) -> None:
    host = runs.host("overcommit", "base")
    findings = importlib.import_module("docs.findings")  # `refresh` has made it importable
    before, after = findings.before_swapping(host), findings.last_of(host, 0.1)
    assert before.change("walks") > 0
    assert before.change("swap_outs") == 0
    assert after.change("swap_ins") < 0.01 * host.values("swap_ins")[-1]
    assert after.loads_per_walk > 1.2 * before.loads_per_walk
    assert after.misses_per_kaccess > 1.5 * before.misses_per_kaccess
    assert after.slowdown > 1.05 * runs.comparison("overcommit")["roomy"]["slowdown"]


# --- trace ------------------------------------------------------------------------------


def test_a_real_program_hardly_misses_under_large_pages(trace: dict[str, dict[str, Any]]) -> None:
    for name in ("base", "thp", "container"):
        assert trace[name]["tlb_misses_per_kaccess"] < 0.1
    assert trace["pages_4k"]["tlb_misses_per_kaccess"] > 1
    assert trace["pages_4k"]["slowdown"] > trace["thp"]["slowdown"] > trace["base"]["slowdown"]
    assert trace["container"]["slowdown"] < trace["base"]["slowdown"]


def test_first_touches_are_what_slows_the_real_program(runs: Any) -> None:
    for name in runs.comparison("trace"):
        totals = runs.summary("trace", name)["host"]["totals"]
        lost = totals["elapsed_ns"] - totals["ideal_ns"]
        assert totals["fault_service_ns"] + totals["guest_fault_ns"] > 0.9 * lost, name
        zeroes = name in ("thp", "pages_4k")
        assert (totals["guest_fault_ns"] > 0.05 * totals["ideal_ns"]) == zeroes, name


def test_guests_that_replay_a_trace_touch_what_the_program_touched(runs: Any) -> None:
    info = trace_info(builtin_trace())
    guests = runs.summary("trace", "container")["guests"]
    assert len(guests) == 4
    for guest in guests:
        assert [region["touched_bytes"] for region in guest["regions"]] == [info["touched_bytes"]]
