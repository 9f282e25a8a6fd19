"""What the guest's own kernel does with its memory: page cache, reclaim, swap, pools, reuse."""

from __future__ import annotations

from typing import Any

import pytest
import scenarios_small as small
from scenarios_small import BLOCK, GIB, KIB, MIB, MS, PAGE, US

from simvm.model.engine import Simulation
from simvm.model.guest import Guest
from simvm.model.kernel_threads import KernelThread
from simvm.model.queues import Process
from simvm.model.watermarks import Watermarks

IN_ORDER = {"kind": "sequential", "stride": PAGE}
FREE = 62 * MIB  # of a guest of 64 MiB: its struct pages take a block
SWAP = {
    "device": "nvme", "size": 64 * MIB, "latency": 100 * US, "latency_p99": 100 * US,
}  # fmt: skip


def walk(size: int, **values: Any) -> dict[str, Any]:
    """A phase that touches every page of a region once, in order."""
    base: dict[str, Any] = {
        "allocate": size, "accesses": size // PAGE, "pattern": IN_ORDER, "cycles_per_access": 2_000,
    }  # fmt: skip
    return small.phase(**{**base, **values})


def made(*phases: dict[str, Any], host: dict[str, Any] | None = None, **values: Any) -> Simulation:
    """A guest of 64 MiB with small pages, simulated to its end; `duration` is the scenario's."""
    meta = {name: values.pop(name) for name in ("duration", "sample_interval") if name in values}
    guest = small.guest(*phases, **{"memory": 64 * MIB, "page_size": PAGE, **values})
    if not phases:
        guest["workload"] = []
    return small.simulate(small.scenario({"vm": guest}, host=host, **meta))


def guest_of(simulation: Simulation) -> dict[str, Any]:
    """The guest's part of the summary."""
    values: dict[str, Any] = small.summary_of(simulation)["guests"][0]
    return values


# --- watermarks, and what drivers may ask -----------------------------------------------


def test_watermarks_are_those_of_linux() -> None:
    """64 MiB: min is 4 x sqrt(65536) = 1024 KiB; a step is a quarter of it."""
    marks = Watermarks.of(64 * MIB)
    assert (marks.min_bytes, marks.low_bytes) == (MIB, MIB + MIB // 4)
    assert marks.high_bytes == MIB + MIB // 2
    assert Watermarks.of(64 * MIB, 2 * MIB, 1_000).low_bytes == 2 * MIB + 64 * MIB // 10


def taken_by_a_driver(simulation: Simulation, pages: int) -> list[int]:
    guest: Guest = simulation.guests[0]
    taken: list[int] = []

    def drive() -> Process:
        taken.extend((yield from guest.mm.take(pages, KernelThread(guest))))

    simulation.env.run(until=simulation.env.process(drive()))
    return taken


def test_a_driver_takes_what_is_above_the_min_watermark_and_no_more() -> None:
    simulation = made(small.phase(allocate=BLOCK, accesses=1))
    memory = simulation.guests[0].memory
    free = memory.free_bytes
    assert len(taken_by_a_driver(simulation, 100)) == 100
    taken = taken_by_a_driver(simulation, 1 << 20)
    assert len(taken) == (free - MIB) // PAGE - 100
    assert memory.free_bytes == MIB


def test_a_driver_makes_the_guest_give_its_cache_up() -> None:
    """40 MiB of cache in 62: a driver that wants 50 gets them, and the cache pays."""
    simulation = made(duration=100 * MS, page_cache={"files": 40 * MIB, "read_rate": GIB})
    guest = simulation.guests[0]
    assert guest.mm.cache_bytes == 40 * MIB
    assert len(taken_by_a_driver(simulation, 50 * MIB // PAGE)) == 50 * MIB // PAGE
    assert FREE - 50 * MIB - 2 * MIB < guest.mm.cache_bytes <= FREE - 50 * MIB - MIB


# --- the page cache ---------------------------------------------------------------------


def test_the_cache_grows_at_the_rate_of_reading() -> None:
    """A piece of 128 KiB each ms: 10 of them in 9.5 ms, each read in less than one."""
    result = guest_of(made(
        duration=9_500 * US, page_cache={"files": 16 * MIB, "read_rate": 125 * MIB, "latency": US},
    ))  # fmt: skip
    assert result["totals"]["cache_reads"] == result["totals"]["cache_misses"] == 10 * 32
    assert result["final"]["page_cache_bytes"] == 10 * 128 * KIB
    assert result["final"]["guest_free_bytes"] == FREE - 10 * 128 * KIB
    assert result["final"]["touched_bytes"] == MIB + 10 * 128 * KIB
    assert result["final"]["backed_bytes"] >= result["final"]["touched_bytes"]


def test_what_is_cached_is_not_read_again() -> None:
    """4 MiB are 32 pieces; 40 ms hold 40: the first eight come round from the cache."""
    result = guest_of(made(
        duration=39_500 * US, page_cache={"files": 4 * MIB, "read_rate": 125 * MIB, "latency": US},
    ))  # fmt: skip
    assert result["totals"]["cache_reads"] == 40 * 32
    assert result["totals"]["cache_misses"] == 32 * 32
    assert result["totals"]["cache_drops"] == 0


@pytest.mark.parametrize("written", [0.0, 1.0])
def test_the_cache_fills_what_is_free_and_gives_way_from_the_old_end(written: float) -> None:
    """Files twice as large as memory: the cache ends between the watermarks, all else free."""
    result = guest_of(made(
        duration=400 * MS,
        page_cache={"files": 128 * MIB, "read_rate": GIB, "write_fraction": written},
    ))  # fmt: skip
    totals, final = result["totals"], result["final"]
    marks = Watermarks.of(64 * MIB)
    assert marks.min_bytes <= final["guest_free_bytes"] <= marks.high_bytes + 128 * KIB
    writing = FREE - final["guest_free_bytes"] - final["page_cache_bytes"]
    assert totals["cache_drops"] * PAGE == (
        totals["cache_misses"] * PAGE - final["page_cache_bytes"]
    )  # fmt: skip
    assert totals["cache_writebacks"] == written * totals["cache_drops"]
    assert writing <= 33 * 128 * KIB if written else writing == 0
    assert totals["guest_swap_outs"] == 0


def after_the_cache(**cache: Any) -> dict[str, Any]:
    """48 MiB of files are cached when a program wants 40 of 62 MiB."""
    return guest_of(made(
        small.phase(region="first", allocate=PAGE, accesses=1, think_time=150 * MS, measure=False),
        walk(40 * MIB),
        page_cache={"files": 48 * MIB, "read_rate": GIB, "bandwidth": 2 * GIB, **cache},
    ))  # fmt: skip


def test_a_program_takes_its_memory_from_the_cache() -> None:
    """At the end 62 - 40 = 22 MiB, less the low watermark and tables, can be cache."""
    result = after_the_cache()
    assert not result["killed"]
    assert 15 * MIB < result["final"]["page_cache_bytes"] < 22 * MIB - MIB
    assert result["totals"]["cache_drops"] >= (48 - 22) * MIB // PAGE
    assert result["final"]["guest_swapped_bytes"] == 0


def test_a_dirty_cache_costs_the_program_the_writing() -> None:
    """A page in 1 ms on a disk for one request: direct reclaim waits, where a drop does not."""
    slow = {"latency": 1 * MS, "parallelism": 1, "read_rate": 128 * MIB}
    clean = after_the_cache(**slow)["totals"]
    dirty = after_the_cache(**slow, write_fraction=1.0)["totals"]
    assert dirty["cache_writebacks"] > 1_000
    # kswapd writes most of them in the meantime; a drop is there at once.
    assert dirty["guest_reclaim_ns"] > 100 * MS
    assert clean["guest_reclaim_ns"] < MS


# --- the guest's swap -------------------------------------------------------------------


def test_what_does_not_fit_goes_to_the_guests_swap_and_comes_back() -> None:
    """80 MiB in 62 MiB less 1.5 of watermark, twice in order: the second pass finds next to
    nothing in memory, as least-recently-used has it, and waits 100 us for each page."""
    once = guest_of(made(walk(80 * MIB), swap=SWAP, host={"page_size": PAGE}))
    totals = once["totals"]
    assert (80 - 62) * 256 < totals["guest_swap_outs"] < (80 - 60) * 256 + 512
    assert totals["guest_swap_ins"] == totals["swap_outs"] == 0
    # What went out was backed by the host, and stays so.
    assert once["final"]["backed_bytes"] > 60 * MIB

    twice = guest_of(made(
        walk(80 * MIB), walk(80 * MIB, name="again", allocate=None), swap=SWAP,
    ))  # fmt: skip
    ins = twice["totals"]["guest_swap_ins"]
    assert 0.9 * 80 * 256 < ins <= 80 * 256
    assert twice["totals"]["guest_swap_in_ns"] > ins * 100 * US
    (again,) = [phase for phase in twice["phases"] if phase["name"] == "again"]
    assert again["parts"]["guest_swap_in_ns"] == twice["totals"]["guest_swap_in_ns"]


def test_huge_pages_are_split_before_they_go() -> None:
    result = guest_of(made(walk(80 * MIB), swap=SWAP, page_size=BLOCK))
    totals = result["totals"]
    assert totals["guest_swap_outs"] * PAGE == result["final"]["guest_swapped_bytes"]
    assert result["final"]["guest_huge_bytes"] < 50 * MIB
    assert totals["guest_swap_outs"] >= (80 - 62) * 256


def test_a_guest_that_cannot_go_on_dies_as_without_swap() -> None:
    result = guest_of(made(walk(80 * MIB), swap={**SWAP, "size": 8 * MIB}))
    assert result["failure"] == "no free memory in the guest"
    assert result["totals"]["guest_swap_outs"] == 8 * 256


def test_freeing_gives_the_swap_slots_back() -> None:
    simulation = made(walk(80 * MIB, free="all"), swap=SWAP)
    swap = simulation.guests[0].mm.swap
    assert swap is not None
    assert swap.device.used_bytes == 0
    assert guest_of(simulation)["final"]["guest_swapped_bytes"] == 0


def test_files_give_before_programs() -> None:
    """As long as there are 4096 inactive pages of files and more, nothing is swapped."""
    result = guest_of(made(
        walk(40 * MIB), duration=300 * MS, swap=SWAP,
        page_cache={"files": 128 * MIB, "read_rate": GIB},
    ))  # fmt: skip
    assert result["totals"]["cache_drops"] > 0
    swappy = guest_of(made(
        walk(52 * MIB), duration=300 * MS, swap=SWAP, reclaim={"swappiness": 200},
        page_cache={"files": 128 * MIB, "read_rate": GIB},
    ))  # fmt: skip
    assert result["totals"]["guest_swap_outs"] == 0 < swappy["totals"]["guest_swap_outs"]


@pytest.mark.parametrize("virtualization", ["nested", "shadow"])
def test_threads_that_share_swapped_pages_add_up(virtualization: str) -> None:
    """Two vCPUs over one region in a guest with cache and swap: every ns and byte has a place."""
    simulation = made(
        small.phase(allocate=72 * MIB, accesses=30_000, threads=2, write_fraction=0.5,
                    cycles_per_access=2_000, free="all"),
        vcpus=2, swap=SWAP, page_cache={"files": 16 * MIB, "read_rate": 256 * MIB,
                                        "write_fraction": 0.5},
        virtualization=virtualization, page_size=BLOCK,
    )  # fmt: skip
    result = guest_of(simulation)
    assert not result["killed"]
    assert result["totals"]["accesses"] == 30_000
    assert result["totals"]["guest_swap_ins"] > 100
    memory = simulation.guests[0].memory
    assert memory.free_bytes == memory.recount()


# --- pools of huge pages ----------------------------------------------------------------


@pytest.mark.parametrize(("page", "key"), [(BLOCK, "size_2m"), (GIB, "size_1g")])
def test_a_region_comes_from_a_pool(page: int, key: str) -> None:
    """Two of three pages of the pool, which is no free memory of the guest before or after."""
    simulation = made(
        small.phase(allocate=2 * page, accesses=2, pattern={"kind": "sequential", "stride": page},
                    hugetlb=page),
        memory=5 * page if page == GIB else 64 * MIB, hugetlb={key: 3 * page},
        host={"memory": 8 * GIB},
    )  # fmt: skip
    final = guest_of(simulation)["final"]
    assert final["guest_huge_bytes"] == 2 * page
    kernel = simulation.guests[0].mm.kernel
    assert kernel is not None
    assert kernel.free_pool_bytes(1 if page == BLOCK else 2) == page
    rest = simulation.guests[0].memory.size - 3 * page - final["guest_free_bytes"]
    assert rest < 82 * MIB  # struct pages and tables


def test_an_empty_pool_is_a_bus_error() -> None:
    work = walk(16 * MIB, hugetlb=BLOCK)
    result = guest_of(made(work, hugetlb={"size_2m": 8 * MIB}))
    assert result["failure"] == "no page left in the guest's own hugetlb pool (SIGBUS)"
    assert not guest_of(made(work, hugetlb={"size_2m": 16 * MIB}))["killed"]


# --- an aged guest, and khugepaged ------------------------------------------------------


def huge_after(**values: Any) -> tuple[int, dict[str, Any]]:
    """2 MiB pages of a region of 8 MiB, after 95 ms in a guest that allows them."""
    work = walk(8 * MIB, accesses=values.pop("accesses", 8 * 256))
    result = guest_of(made(work, duration=95 * MS, page_size=BLOCK, **values))
    return result["final"]["guest_huge_bytes"] // BLOCK, result


@pytest.mark.parametrize(("kind", "share", "huge"), [
    ("movable", 0.0, 29), ("movable", 0.5, 14), ("movable", 1.0, 0),
    ("unmovable", 0.0, 29), ("unmovable", 0.5, 15), ("unmovable", 1.0, 0),
])  # fmt: skip
def test_blocks_with_a_page_in_them_are_no_huge_pages(kind: str, share: float, huge: int) -> None:
    """31 blocks: of half, 16 are broken; tables break one more, or lie beside what cannot move.

    Without breaks the region has its 29, and the low watermark of 1.25 MiB is left.
    """
    result = guest_of(made(walk(58 * MIB), page_size=BLOCK, fragmentation={kind: share}))
    assert result["final"]["guest_huge_bytes"] // BLOCK == huge
    assert not result["killed"]


KHUGEPAGED = {"pages_to_scan": 512, "scan_sleep": 10 * MS}


def test_khugepaged_repairs_what_can_move_and_nothing_else() -> None:
    """One range in each of nine passes: four ranges are huge when it has come round."""
    movable, result = huge_after(fragmentation={"movable": 1.0}, khugepaged=KHUGEPAGED)
    assert movable == result["totals"]["guest_collapses"] == 4
    assert result["totals"]["pages_moved"] >= 4
    assert huge_after(fragmentation={"unmovable": 1.0}, khugepaged=KHUGEPAGED)[0] == 0
    lazy = {**KHUGEPAGED, "defrag": False}
    assert huge_after(fragmentation={"movable": 1.0}, khugepaged=lazy)[0] == 0
    assert huge_after(fragmentation={"movable": 1.0})[0] == 0


def test_khugepaged_works_at_its_rate() -> None:
    """A pass looks at 512 entries, one range: a pass in 40 ms makes two in 95."""
    slow = {"pages_to_scan": 512, "scan_sleep": 40 * MS}
    assert huge_after(fragmentation={"movable": 1.0}, khugepaged=slow)[0] == 2
    fast = {"pages_to_scan": 1_024, "scan_sleep": 40 * MS}
    assert huge_after(fragmentation={"movable": 1.0}, khugepaged=fast)[0] == 4


@pytest.mark.parametrize(("most", "huge"), [(411, 0), (412, 1)])
def test_khugepaged_makes_up_for_missing_pages_and_backs_them(most: int, huge: int) -> None:
    """100 of 512 pages are there, 412 are not: a huge page then is 412 pages that nobody asked
    for. The pages before it are free in the guest, and as backed as before."""
    settings = {**KHUGEPAGED, "max_ptes_none": most}
    aged = {"fragmentation": {"movable": 1.0}, "host": {"page_size": PAGE}, "accesses": 100}
    before, without = huge_after(**aged)
    made_huge, result = huge_after(**aged, khugepaged=settings)
    assert (before, made_huge) == (0, huge)
    grown = result["final"]["backed_bytes"] - without["final"]["backed_bytes"]
    # The block holds the page that moved out, which is backed already, and its new place.
    assert abs(grown - huge * BLOCK) <= 8 * PAGE
    used = without["final"]["guest_free_bytes"] - result["final"]["guest_free_bytes"]
    assert used == huge * 412 * PAGE


# --- memory that somebody has used before -----------------------------------------------


def reused(kind: str, zeroing: str = "none") -> dict[str, Any]:
    """One process touches 64 pages of 1 GiB and frees it; another one touches one page of it."""
    touch = {"pattern": IN_ORDER, "free": "all"}
    return guest_of(made(
        small.phase(name="a", process="a", allocate=GIB, accesses=64, **touch),
        small.phase(name="b", process="b", allocate=GIB, accesses=1, pattern=IN_ORDER),
        memory=3 * GIB, page_size=GIB, zeroing=zeroing, channel={"kind": kind},
    ))  # fmt: skip


def test_a_gib_that_another_process_used_is_zeroed_or_was_dropped() -> None:
    """Without a channel the second process pays for 1 GiB of zeroing, and the host backs it all;
    the hint of the first one's end makes it zero for the price of one call."""
    kept, dropped, safe = reused("none"), reused("passthrough"), reused("none", "guest")
    assert kept["totals"]["guest_reuse_zeroed_bytes"] == GIB
    assert kept["final"]["backed_2m_bytes"] >= GIB
    assert dropped["totals"]["guest_zeroed_bytes"] == 0
    assert dropped["final"]["backed_bytes"] < GIB // 8
    assert 2 <= dropped["totals"]["hint_calls"] <= 3  # names, and one range given back
    first, second = (phase["parts"]["guest_fault_ns"] for phase in kept["phases"])
    assert second - first == kept["totals"]["guest_fault_ns"] - 2 * first > 50 * MS
    # A guest that zeroes anyway does it for both.
    assert safe["totals"]["guest_zeroed_bytes"] == 2 * GIB
    assert safe["totals"]["guest_reuse_zeroed_bytes"] == 0


def test_no_page_reaches_a_process_with_what_another_wrote() -> None:
    """Whatever a process maps at the end, none of it is marked as left by somebody."""
    simulation = made(
        walk(20 * MIB, region="a", process="a", free="all"),
        walk(24 * MIB, region="b", process="b", repeat=1),
        page_cache={"files": 8 * MIB, "read_rate": 256 * MIB}, duration=50 * MS,
    )  # fmt: skip
    guest = simulation.guests[0]
    table = guest.processes["b"].table
    region = guest.regions["b", "b"].core
    assert table is not None
    pages = range(region.base, region.base + region.size, PAGE)
    leaves = [leaf for leaf in map(table.lookup, pages) if leaf is not None]
    assert len(leaves) == 24 * 256
    assert not any(guest.memory.is_stale(leaf.target) for leaf in leaves)
    result = guest_of(simulation)
    zeroed = result["totals"]["guest_reuse_zeroed_bytes"]
    # Those of the first process and of its tables, but for what the cache had meanwhile.
    assert zeroed <= 20 * MIB + 16 * PAGE <= zeroed + result["final"]["page_cache_bytes"]
