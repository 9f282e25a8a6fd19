"""What mapping guest memory one way or another costs: the directions, with their sizes."""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import scenarios_small as small
from scenarios_small import BLOCK, GIB, MIB, PAGE

SEQUENTIAL = {"kind": "sequential", "stride": PAGE}
PASSTHROUGH: dict[str, Any] = {
    "page_size": GIB, "zeroing": "none", "channel": {"kind": "passthrough"},
}  # fmt: skip
THP: dict[str, Any] = {"page_size": BLOCK, "zeroing": "guest"}
ZEROED_1G: dict[str, Any] = {"page_size": GIB, "zeroing": "guest"}


def measured(phase: dict[str, Any], *, populate: bool = False, **values: Any) -> dict[str, Any]:
    """The summary of one guest of 4 GiB (a 16 GiB host) that runs one phase.

    With `populate`, a phase of its own that does not count touches every page first.
    """
    first = {**phase, "pattern": SEQUENTIAL, "accesses": phase["allocate"] // PAGE,
             "measure": False, "name": "populate"}  # fmt: skip
    phases = [first, {**phase, "allocate": None, "name": "serve"}] if populate else [phase]
    phases = [small.phase(**each) for each in phases]
    host = values.pop("host", {})
    return small.one(small.result(
        {"vm": small.guest(*phases, **{"memory": 4 * GIB, **values})},
        host={"memory": 16 * GIB, **host},
    ))  # fmt: skip


# --- footprint --------------------------------------------------------------------------


def test_a_lazily_backed_1g_page_holds_what_is_touched_and_a_zeroed_one_all() -> None:
    """A region of 2 GiB of which 100 MiB are accessed; 64 MiB are struct pages."""
    kernel = 4 * GIB // PAGE * 64
    work = small.phase(allocate=2 * GIB, accesses=25_600, pattern=SEQUENTIAL)
    lazy, zeroed = measured(work, **PASSTHROUGH), measured(work, **ZEROED_1G)
    assert lazy["final"]["backed_bytes"] == kernel + 100 * MIB + BLOCK  # + 2 MiB for tables
    # The last page of the second GiB is not reached, so one GiB is allocated and zeroed.
    assert zeroed["final"]["backed_bytes"] == kernel + GIB + BLOCK
    assert lazy["final"]["touched_bytes"] == zeroed["final"]["touched_bytes"]
    assert lazy["totals"]["guest_fault_ns"] < 0.01 * zeroed["totals"]["guest_fault_ns"]


def test_every_zeroed_1g_page_is_backed_whole() -> None:
    """Strided by 512 MiB: 4 pages touched, 2 GiB zeroed."""
    stride = {"kind": "strided", "stride": 512 * MIB}
    work = small.phase(allocate=2 * GIB, accesses=4, pattern=stride)
    lazy, zeroed = measured(work, **PASSTHROUGH), measured(work, **ZEROED_1G)
    kernel = 4 * GIB // PAGE * 64
    assert zeroed["final"]["backed_bytes"] == kernel + 2 * GIB + BLOCK
    assert lazy["final"]["backed_bytes"] == kernel + 4 * BLOCK + BLOCK


@pytest.mark.parametrize("host_page", [PAGE, BLOCK])
def test_the_host_backs_pieces_of_its_own_page_size(host_page: int) -> None:
    work = small.phase(allocate=GIB, accesses=100, pattern={"kind": "strided", "stride": 8 * MIB})
    final = measured(work, **PASSTHROUGH, host={"page_size": host_page})["final"]
    by_size = {PAGE: "backed_4k_bytes", BLOCK: "backed_2m_bytes"}
    assert final[by_size[host_page]] == final["backed_bytes"]
    kernel = 4 * GIB // PAGE * 64
    tables = 2 * PAGE if host_page == PAGE else BLOCK  # the root, and the one with the leaf
    assert final["backed_bytes"] == kernel + 100 * host_page + tables


@pytest.mark.parametrize("accesses", [2_000, 20_000, 80_000])
def test_first_touches_follow_the_law_of_coupon_collecting(accesses: int) -> None:
    """E[distinct pages after k uniform accesses] = N (1 - (1 - 1/N)^k); 4 sigma."""
    n = 64 * MIB // PAGE
    final = measured(
        small.phase(allocate=64 * MIB, accesses=accesses), page_size=PAGE, host={"page_size": PAGE},
    )["final"]  # fmt: skip
    tables = final["guest_tables_bytes"]
    pages = (final["touched_bytes"] - tables - 4 * GIB // PAGE * 64) // PAGE
    miss = (1 - 1 / n) ** accesses
    variance = n * (n - 1) * (1 - 2 / n) ** accesses + n * miss - n * n * miss**2
    assert abs(pages - n * (1 - miss)) < 4 * sqrt(variance)


def test_4k_backing_equals_touched_memory() -> None:
    """With 4 KiB on both sides nothing is backed that was not touched."""
    final = measured(small.phase(), page_size=PAGE, host={"page_size": PAGE})["final"]
    assert final["backed_bytes"] == final["touched_bytes"]


# --- page tables ------------------------------------------------------------------------


def table_bytes(footprint: int, leaf: int) -> int:
    """Of a dense footprint under a root of 4 levels: 4 KiB x sum over levels of ceil."""
    spans = [span for span in (2 * MIB, GIB, 512 * GIB, 256 << 40) if span > leaf]
    return PAGE * sum(-(-footprint // span) for span in spans)


@pytest.mark.parametrize(
    ("backing", "page", "deposits"),
    [("anon", PAGE, 0), ("anon", BLOCK, 1), ("memfd", BLOCK, 0), ("hugetlb", BLOCK, 0),
     ("memfd", PAGE, 0), ("hugetlb", GIB, 0)],
)  # fmt: skip
def test_host_tables_of_a_dense_footprint_are_exact(
    backing: str, page: int, deposits: int
) -> None:
    """Boot fills all of a guest of 1 GiB but 16 MiB of struct pages and a rest of 8 MiB."""
    host: dict[str, Any] = {"page_size": page, "backing": backing}
    if backing == "hugetlb":
        host["hugetlb"] = {"page_size": page, "size": 2 * GIB}
    result = small.result(
        {"vm": small.guest(
            small.phase(pattern=None, accesses=None, allocate=PAGE, process="app"),
            memory=GIB, boot=GIB - 24 * MIB, page_size=PAGE,
        )},
        host=host, duration=2_000_000_000,
    )  # fmt: skip
    final = small.one(result)["final"]
    dense = GIB - 8 * MIB
    expected = table_bytes(dense, page)
    assert final["slat_tables_bytes"] == expected
    assert final["host_tables_bytes"] == expected  # the VMM maps the same memory
    assert final["deposited_tables_bytes"] == deposits * dense // BLOCK * PAGE
    assert final["backed_bytes"] == (GIB if page == GIB else dense)


@pytest.mark.parametrize(("page", "deposits"), [(PAGE, 0), (BLOCK, 1), (GIB, 0)])
def test_guest_tables_of_a_dense_footprint_are_exact(page: int, deposits: int) -> None:
    """1 GiB from a 1 GiB boundary; a huge page of 2 MiB keeps a table for its split."""
    final = measured(
        small.phase(allocate=GIB, accesses=GIB // PAGE, pattern=SEQUENTIAL),
        page_size=page, host={"page_size": BLOCK, "backing": "memfd"},
    )["final"]  # fmt: skip
    assert final["guest_tables_bytes"] == table_bytes(GIB, page)
    assert final["deposited_tables_bytes"] == deposits * 512 * PAGE
    tables = final["slat_tables_bytes"] + final["host_tables_bytes"] + final["guest_tables_bytes"]
    assert final["tables_bytes"] == tables


def test_a_container_has_one_table_and_the_host_fills_it() -> None:
    final = measured(
        small.phase(allocate=GIB, accesses=512, pattern={"kind": "strided", "stride": BLOCK}),
        virtualization="none",
    )["final"]  # fmt: skip
    assert final["backed_bytes"] == final["backed_2m_bytes"] == GIB
    assert final["host_tables_bytes"] == final["tables_bytes"] == table_bytes(GIB, BLOCK)
    assert final["slat_tables_bytes"] == final["guest_tables_bytes"] == 0
    assert final["deposited_tables_bytes"] == 512 * PAGE


# --- translation ------------------------------------------------------------------------


def serve(**values: Any) -> dict[str, Any]:
    """12 GiB, uniform: beyond the reach of TLBs and of walk caches; populated before."""
    stride = small.phase(
        allocate=12 * GIB, accesses=6_144, pattern={"kind": "strided", "stride": BLOCK},
        measure=False, name="populate",
    )  # fmt: skip
    work = small.phase(allocate=None, accesses=60_000, name="serve")
    return small.one(small.result(
        {"vm": small.guest(stride, work, memory=14 * GIB, **values)}, host={"memory": 32 * GIB},
    ))  # fmt: skip


def test_passthrough_gains_walk_length_and_not_reach() -> None:
    """The entry is min(guest, host): as many misses as with THP, each with fewer loads."""
    lazy, thp, box = serve(**PASSTHROUGH), serve(**THP), serve(virtualization="none")
    misses = thp["tlb_misses_per_kaccess"]
    assert misses > 100
    assert lazy["tlb_misses_per_kaccess"] == pytest.approx(misses, rel=0.02)
    assert box["tlb_misses_per_kaccess"] == pytest.approx(misses, rel=0.02)
    assert lazy["loads_per_walk"] < thp["loads_per_walk"] - 0.5
    assert box["loads_per_walk"] < lazy["loads_per_walk"] - 0.5
    assert box["slowdown"] < lazy["slowdown"] < thp["slowdown"]


@pytest.mark.parametrize(
    ("guest_page", "host_page", "entry"),
    [(GIB, BLOCK, BLOCK), (BLOCK, BLOCK, BLOCK), (GIB, PAGE, PAGE), (PAGE, BLOCK, PAGE),
     (PAGE, PAGE, PAGE)],
)  # fmt: skip
def test_the_reach_is_that_of_the_smaller_leaf(
    guest_page: int, host_page: int, entry: int
) -> None:
    """A footprint of 256 MiB: 128 entries of 2 MiB fit in the TLB, 65,536 of 4 KiB do not."""
    result = measured(
        small.phase(allocate=256 * MIB, accesses=100_000), populate=True,
        page_size=guest_page, host={"page_size": host_page},
    )  # fmt: skip
    misses = result["tlb_misses_per_kaccess"]
    if entry == BLOCK:
        assert misses < 5
    else:
        assert misses > 900


@pytest.mark.parametrize(("page", "most"), [(PAGE, 4), (BLOCK, 3)])
def test_a_container_walks_in_one_dimension(page: int, most: int) -> None:
    result = measured(
        small.phase(allocate=GIB, accesses=50_000), virtualization="none",
        host={"page_size": page},
    )  # fmt: skip
    assert 1 <= result["loads_per_walk"] <= most
    assert result["totals"]["guest_faults"] == 0


def test_what_is_asked_of_a_container_by_guest_keys_does_not_apply() -> None:
    work = small.phase()
    plain = measured(work, virtualization="none", page_size=PAGE)
    other = measured(work, virtualization="none", **PASSTHROUGH)
    assert plain == other


# --- freed memory -----------------------------------------------------------------------


def freed(size: Any, **values: Any) -> dict[str, Any]:
    """A guest that touches 1 GiB, every page, and frees `size` of it."""
    work = small.phase(allocate=GIB, accesses=GIB // PAGE, pattern=SEQUENTIAL, free=size)
    return measured(work, **values)


def test_without_a_channel_freed_memory_stays_backed() -> None:
    result = freed("all", page_size=BLOCK)
    final, kernel = result["final"], 4 * GIB // PAGE * 64
    assert final["stranded_bytes"] == final["backed_bytes"] - kernel - used_tables(final)
    assert final["stranded_bytes"] >= GIB
    assert final["touched_bytes"] == kernel + PAGE  # the root of the process's table


def used_tables(final: dict[str, int]) -> int:
    return final["guest_tables_bytes"]


def test_hints_return_freed_memory() -> None:
    """All of the 1 GiB page goes; what is left free is what the guest's own tables took."""
    result = freed("all", **PASSTHROUGH)
    final, kernel = result["final"], 4 * GIB // PAGE * 64
    assert final["backed_bytes"] == kernel + BLOCK
    assert final["stranded_bytes"] == BLOCK - PAGE
    assert result["totals"]["hint_calls"] == 2  # its name, and one range
    assert result["totals"]["shootdowns"] == 1


def test_a_part_of_a_region_is_freed_from_its_end() -> None:
    result = freed(256 * MIB, page_size=BLOCK, channel={"kind": "passthrough"})
    (region,) = result["regions"]
    assert region["bytes"] == region["touched_bytes"] == region["backed_2m_bytes"] == 768 * MIB
    assert region["named_to_host"]
    final = result["final"]
    # 384 tables are in use and 128 free in the two blocks that hold the deposits.
    assert final["stranded_bytes"] < 2 * BLOCK


def test_a_container_frees_to_the_host_at_once() -> None:
    result = freed("all", virtualization="none")
    final = result["final"]
    assert final["backed_bytes"] == final["stranded_bytes"] == final["deposited_tables_bytes"] == 0
    assert final["tables_bytes"] == PAGE  # the root
    assert result["regions"] == []


def test_4k_hints_split_the_host_page_and_hold_its_frame() -> None:
    """The guest frees 4 KiB pages in the middle of a 2 MiB leaf of the host."""
    made = small.simulate(small.scenario({"vm": small.guest(
        small.phase(allocate=64 * MIB, accesses=16_384, pattern=SEQUENTIAL, free=31 * MIB),
        page_size=PAGE, channel={"kind": "passthrough"},
    )}))  # fmt: skip
    totals = small.summary_of(made)["host"]["totals"]
    final = small.summary_of(made)["host"]["final"]
    assert totals["host_splits"] >= 1
    assert 0 < final["partial_bytes"] < 2 * BLOCK
    assert final["backed_4k_bytes"] > 0


# --- what one cannot have ---------------------------------------------------------------


def test_a_pool_that_runs_dry_kills_the_guest_and_only_it() -> None:
    work = small.phase(allocate=300 * MIB, accesses=80_000, pattern=SEQUENTIAL)
    result = small.result(
        {"vm": small.guest(work, count=2)},
        host={"backing": "hugetlb", "hugetlb": {"page_size": BLOCK, "size": 500 * MIB}},
    )  # fmt: skip
    killed = [guest for guest in result.summary["guests"] if guest["killed"]]
    assert len(killed) == 1
    assert killed[0]["failure"] == "no page left in the hugetlb pool (SIGBUS)"
    (lived,) = [guest for guest in result.summary["guests"] if not guest["killed"]]
    assert lived["totals"]["accesses"] == 80_000
    assert result.summary["host"]["oom_kills"] == 0


def test_a_container_on_hugetlb_gives_its_pages_back() -> None:
    """A region smaller than the pool's page takes one, and frees it whole."""
    work = small.phase(allocate=64 * MIB, accesses=100, free="all", repeat=3)
    result = small.result(
        {"box": small.container(work, memory=GIB)},
        host={"page_size": GIB, "backing": "hugetlb", "memory": 4 * GIB,
              "hugetlb": {"page_size": GIB, "size": GIB}},
    )  # fmt: skip
    box = small.one(result)
    assert not box["killed"]
    assert box["totals"]["slat_faults_1g"] == 3
    assert result.summary["host"]["final"]["hugetlb_free_bytes"] == GIB


def test_a_guest_without_a_whole_gib_fails() -> None:
    result = small.result({"vm": small.guest(
        small.phase(allocate=GIB), memory=GIB, boot=4 * MIB, page_size=GIB
    )})  # fmt: skip
    assert small.one(result)["failure"] == "no free memory in the guest"


def test_small_pages_where_no_huge_one_fits_or_is_free() -> None:
    """THP falls back to 4 KiB; the region still is all there."""
    made = small.simulate(small.scenario({"vm": small.guest(
        small.phase(region="a", allocate=8 * MIB, accesses=2_048, pattern=SEQUENTIAL),
        small.phase(region="b", allocate=7 * MIB, accesses=1_792, pattern=SEQUENTIAL),
        memory=12 * BLOCK, boot=6 * MIB,
    )}))  # fmt: skip
    vcpu = made.guests[0].vcpus[0]
    assert vcpu.core.guest_faults == (256, 7, 0)
    guest = small.summary_of(made)["guests"][0]
    assert guest["totals"]["accesses"] == 2_048 + 1_792
    assert sum(region["touched_bytes"] for region in guest["regions"]) == 15 * MIB


def test_addresses_are_used_again_when_a_process_has_no_region_left() -> None:
    """Else a container that allocates and frees for long would run into its neighbour's."""
    work = small.phase(allocate=BLOCK, accesses=10, free="all", repeat=700)
    made = small.simulate(small.scenario({"box": small.container(work, memory=64 * MIB)}))
    space = made.guests[0].process("app")
    assert space.next_address == 1 << 40
    made = small.simulate(small.scenario({"box": small.container(memory=64 * MIB)}))
    assert made.guests[0].process("app").next_address > 1 << 40
