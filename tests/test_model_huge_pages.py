"""Huge pages of the host: fragmented memory, compaction, khugepaged, what both sides map."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scenarios_small as small
from scenarios_small import BLOCK, GIB, MIB, MS, PAGE, S

from simvm.model import ledger
from simvm.model.engine import Simulation
from simvm.model.fragmentation import blocks_to_break
from simvm.model.khugepaged import HugePageDaemon
from simvm.model.swap import Run
from simvm.scenario import Khugepaged

SEQUENTIAL = {"kind": "sequential", "stride": PAGE}
ALL_BROKEN = {"share": 1.0, "unmovable": 0.0}
BLOCKS = 512     # of a host of 1 GiB
OWN_BLOCKS = 8   # of them the first: its struct pages


def filled(*more: dict[str, Any], allocate: int = 64 * MIB, **host: Any) -> Simulation:
    """A guest that has written a region of 64 MiB, on a host of 1 GiB."""
    meta = host.pop("meta", {})
    work = small.phase(
        allocate=allocate, pattern=SEQUENTIAL, accesses=allocate // PAGE, write_fraction=1.0
    )
    return small.simulate(small.scenario(
        {"vm": small.guest(work, *more, memory=128 * MIB)}, host={"memory": GIB, **host}, **meta,
    ))  # fmt: skip


def host_of(made: Simulation) -> dict[str, Any]:
    values: dict[str, Any] = small.summary_of(made)["host"]
    return values | values["totals"] | values["final"]


# --- fragmentation ----------------------------------------------------------------------


def test_the_share_is_of_free_memory() -> None:
    """Of 504 blocks, 64 pages in each of n: n x 448 pages are half of what is left free."""
    n = blocks_to_break(504, 0.5, 64)
    assert n * 448 / (n * 448 + (504 - n) * 512) == pytest.approx(0.5, abs=0.001)
    assert blocks_to_break(504, 1.0, 64) == 504
    assert blocks_to_break(504, 0.0, 64) == 0


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_run_begins_with_memory_as_fragmented_as_it_says(share: float) -> None:
    host = small.simulation(small.scenario(
        host={"memory": GIB, "fragmentation": {"share": share}}
    )).host  # fmt: skip
    whole = host.memory.frames.free_blocks * BLOCK
    assert 1 - whole / host.free_bytes == pytest.approx(share, abs=0.002)
    assert host.scattered_bytes == blocks_to_break(BLOCKS - OWN_BLOCKS, share, 64) * 64 * PAGE
    ledger.balance(host)
    ledger.audit(host)


def test_without_a_whole_block_a_fault_backs_4k() -> None:
    """Half of memory in whole blocks is more than enough; with none, there is no huge page."""
    half, none = (
        host_of(filled(fragmentation={"share": share})) for share in (0.5, 1.0)
    )
    assert half["slat_faults_4k"] == 0
    assert none["slat_faults_2m"] == none["aligned_huge_bytes"] == none["free_huge_bytes"] == 0
    assert none["backed_4k_bytes"] >= 64 * MIB
    assert half["aligned_huge_bytes"] == 64 * MIB


# --- compaction -------------------------------------------------------------------------


def moved_ns(made: Simulation, pages: int) -> int:
    costs = made.host.costs
    copy = PAGE * 1_000_000_000 // costs.copy_bandwidth_bytes_per_s
    return pages * (costs.page_migration_ns + copy)


def test_direct_compaction_makes_each_block_by_moving_what_is_in_it() -> None:
    """64 pages a block, and one block looked at, for each huge fault; no guest has moved.

    The scanner comes by the kernel's own blocks once.
    """
    made = filled(fragmentation=ALL_BROKEN, defrag="direct")
    host = host_of(made)
    faults = host["slat_faults_2m"]
    assert host["slat_faults_4k"] == 0
    assert faults >= 32
    assert host["pages_migrated"] == faults * 64
    looked = OWN_BLOCKS + faults
    expected = moved_ns(made, faults * 64) + looked * made.host.costs.compact_scan_ns
    assert host["direct_compaction_ns"] == expected
    fault = made.host.fault_ns[1]
    assert host["fault_service_ns"] == faults * fault + expected
    assert host["compaction_failures"] == host["shootdowns"] == 0
    ledger.audit(made.host)


def test_compaction_that_fails_is_left_out_twice_as_often_each_time() -> None:
    """No block can be emptied: of n attempts the 1st, 3rd, 7th, 15th ... scan, all in vain."""
    made = filled(fragmentation={"share": 1.0, "unmovable": 1.0}, defrag="direct")
    host = host_of(made)
    attempts = host["backed_4k_bytes"] // BLOCK   # one for each 2 MiB: then it has 4 KiB pages
    assert host["pages_migrated"] == host["slat_faults_2m"] == 0
    failures = (attempts + 1).bit_length() - 1
    assert host["compaction_failures"] == failures
    scanned = failures * (BLOCKS - 1)
    assert host["direct_compaction_ns"] == scanned * made.host.costs.compact_scan_ns
    aside = host_of(filled(fragmentation={"share": 1.0, "unmovable": 1.0}))
    assert aside["fault_service_ns"] + host["direct_compaction_ns"] == host["fault_service_ns"]


def test_kcompactd_works_aside_and_too_late_for_who_woke_it() -> None:
    """The fault that finds no block backs 4 KiB; a later one finds what kcompactd has made."""
    direct = host_of(filled(fragmentation=ALL_BROKEN, defrag="direct"))
    aside = host_of(filled(fragmentation=ALL_BROKEN, defrag="background"))
    assert aside["direct_compaction_ns"] == direct["kcompactd_ns"] == 0
    assert aside["kcompactd_ns"] >= aside["pages_migrated"] * 3_000 > 0
    assert 0 < aside["slat_faults_2m"] < direct["slat_faults_2m"]
    assert aside["slat_faults_4k"] > 0
    # Pressure: the one task there is stalls, or kcompactd beside the vCPU, which goes on.
    assert direct["psi_some_ns"] == direct["direct_compaction_ns"]
    assert aside["psi_some_ns"] == pytest.approx(aside["kcompactd_ns"] / 2, rel=0.01)


def test_pages_of_guests_that_move_cost_them_a_shootdown_for_each_32() -> None:
    """A guest of 4 KiB pages has filled broken blocks up; one of them is emptied under it."""
    made = filled(fragmentation=ALL_BROKEN)
    host, (guest,) = made.host, made.guests
    mine = 0
    while mine <= 64:
        before = guest.shootdowns, guest.invalidations, host.compactor.pages_migrated
        done, cost = host.compactor.attempt()
        assert done
        pages = host.compactor.pages_migrated - before[2]
        mine = guest.invalidations - before[1]
        assert cost >= moved_ns(made, pages)
        assert (mine > 0) == (guest.shootdowns > before[0])
        assert guest.shootdowns - before[0] <= -(-pages // 32)
    ledger.audit(host)
    assert guest.backed_bytes >= 64 * MIB


# --- khugepaged -------------------------------------------------------------------------


def daemon(made: Simulation, **settings: Any) -> HugePageDaemon:
    """A khugepaged that acts when it is told to."""
    return HugePageDaemon(made.host, Khugepaged(**{"scan_sleep": 1_000 * S, **settings}))


def range_of(made: Simulation) -> int:
    """A range of the region's memory that is mapped by 4 KiB pages alone."""
    (guest,) = made.guests
    for address in range(0, guest.config.memory, BLOCK):
        pages = guest.backing.look_at(address)
        if pages is not None and pages[0] == 512:
            return address
    raise AssertionError


def test_a_collapse_costs_a_block_a_copy_and_a_shootdown() -> None:
    """A block is made of one with 64 pages, 512 pages are copied, nothing is zeroed."""
    made = filled(fragmentation=ALL_BROKEN)
    host, (guest,) = made.host, made.guests
    thread, address, backed = daemon(made), range_of(made), guest.backed_bytes
    tables = guest.slat_table_bytes
    assert thread._good(guest, address)
    assert made.env.run(made.env.process(thread._collapse(guest, address))) is True
    costs = host.costs
    copy = 512 * PAGE * 1_000_000_000 // costs.copy_bandwidth_bytes_per_s
    expected = costs.thp_collapse_ns + copy + costs.shootdown_base_ns  # and no vCPU runs
    expected += moved_ns(made, 64) + (OWN_BLOCKS + 1) * costs.compact_scan_ns
    assert thread.cpu_ns == expected
    assert guest.backed_bytes == backed
    assert guest.slat_table_bytes == tables - PAGE
    assert guest.backed_by_order[1] == BLOCK
    assert (guest.collapses, guest.shootdowns) == (1, 1)
    assert not thread._good(guest, address)
    ledger.balance(host)
    ledger.audit(host)


def test_without_a_block_nothing_is_joined_and_the_thread_sleeps_long() -> None:
    made = filled(fragmentation={"share": 1.0, "unmovable": 1.0})
    (guest,) = made.guests
    thread, address = daemon(made), range_of(made)
    assert made.env.run(made.env.process(thread._collapse(guest, address))) is False
    assert guest.collapses == 0
    khugepaged = {"scan_sleep": MS, "alloc_sleep": 10 * MS}
    busy = filled(
        fragmentation={"share": 1.0, "unmovable": 1.0}, khugepaged=khugepaged, allocate=96 * MIB,
        meta={"duration": 55 * MS},
    )  # fmt: skip
    assert busy.host.compactor.failures == 2   # of five attempts, 11 ms apart: 1st and 3rd
    assert busy.guests[0].collapses == 0


@pytest.mark.parametrize(("most", "collapses"), [(511, True), (300, False)])
def test_missing_pages_are_backed_up_to_a_limit(most: int, collapses: bool) -> None:
    """One page in four is touched: a collapse quadruples what 64 MiB hold, or is not made."""
    work = small.phase(pattern={"kind": "strided", "stride": 4 * PAGE}, accesses=4_096)
    rest = small.phase(name="rest", region="heap", allocate=None, pattern={
        "kind": "strided", "stride": 4 * PAGE}, accesses=40_960, cycles_per_access=1_000)
    made = small.simulate(small.scenario(
        {"vm": small.guest(work, rest, memory=128 * MIB)},
        host={"memory": GIB, "fragmentation": ALL_BROKEN,
              "khugepaged": {"scan_sleep": MS, "max_ptes_none": most}},
    ))  # fmt: skip
    host = host_of(made)
    assert (host["collapses"] >= 32) == collapses
    least, limit = (64, 72) if collapses else (16, 20)
    assert least * MIB <= host["backed_bytes"] <= limit * MIB
    if not collapses:
        assert host["khugepaged_ns"] > 0    # it looked, and left them


def test_it_scans_so_many_pages_and_sleeps() -> None:
    """Of 64 ranges: 8 a pass with 4096 pages, 1 with 512; a pass a millisecond, 10 of them."""
    sizes = {}
    for pages in (512, 4096):
        idle = small.phase(name="idle", region="heap", allocate=None, accesses=100,
                           think_time=MS // 4)
        made = filled(
            idle, fragmentation=ALL_BROKEN, khugepaged={"scan_sleep": MS, "pages_to_scan": pages},
        )  # fmt: skip
        thread = made.host.khugepaged
        assert thread is not None
        passes = made.env.now / MS
        looked = min(64, passes * pages // 512)
        sizes[pages] = made.guests[0].collapses
        assert 0 < sizes[pages] <= looked
    assert sizes[4096] >= 32 > sizes[512] - 32


def swapped(made: Simulation, address: int, pages: int) -> None:
    """Put the first pages of a range on the swap device."""
    host, (guest,) = made.host, made.guests
    folios = guest.backing.folios(address, address + pages * PAGE)
    slots = [host.swap.slot_for(0) for _ in folios]
    frames = [host.memory.address_of(folio) for folio in folios]
    assert all(slot is not None for slot in slots)
    for folio, slot in zip(folios, slots, strict=True):
        assert slot is not None
        host.memory.swap_out(folio, slot)
    kept = [slot for slot in slots if slot is not None]
    host.swap.write(Run(kept, frames, guest.content, address), lambda left:
                    host.memory.frames.free_many(np.array(left, dtype=np.uint64)))
    made.env.run(host.swap.writes_done)
    guest.note_backed()


@pytest.mark.parametrize(("most", "joined"), [(64, True), (5, False)])
def test_pages_on_the_swap_device_are_read_up_to_a_limit(most: int, joined: bool) -> None:
    made = filled(
        fragmentation=ALL_BROKEN, swap={"device": "nvme", "size": 64 * MIB}
    )
    (guest,) = made.guests
    address = range_of(made)
    swapped(made, address, 10)
    assert guest.swapped_bytes == 10 * PAGE
    thread = daemon(made, max_ptes_swap=most)
    assert thread._good(guest, address) == joined
    if not joined:
        return
    started = made.env.now
    assert made.env.run(made.env.process(thread._collapse(guest, address))) is True
    assert made.env.now - started > 10 * 20_000   # one read after another
    assert (guest.swapped_bytes, guest.swap_ins, guest.collapses) == (0, 10, 1)
    ledger.balance(made.host)
    ledger.audit(made.host)


def test_a_guest_may_die_while_its_pages_are_read() -> None:
    made = filled(fragmentation=ALL_BROKEN, swap={"device": "nvme", "size": 64 * MIB})
    (guest,) = made.guests
    address = range_of(made)
    swapped(made, address, 10)
    work = made.env.process(daemon(made)._collapse(guest, address))
    while not guest.reads:
        made.env.step()
    ledger.balance(made.host)
    guest.kill("for the test")
    made.env.run(work)
    assert guest.collapses == 0
    ledger.balance(made.host)
    ledger.audit(made.host)


def test_what_reclaim_broke_is_mended_once_there_is_room() -> None:
    """Two guests on 160 MiB want 192, until one goes: swapped pages come back as 4 KiB.

    They stay so without khugepaged. With it, each broken range of the one that stays is made
    whole again, and its walks get shorter while it still runs.
    """
    found = {}
    for name, khugepaged in (("broken", None), ("mended", {"scan_sleep": MS, "alloc_sleep": MS})):
        stays, goes = (
            small.phase(allocate=96 * MIB, accesses=accesses, cycles_per_access=2_000)
            for accesses in (150_000, 60_000)
        )
        summary = small.result_of(small.scenario(
            {"stays": small.guest(stays, memory=128 * MIB),
             "goes": small.guest(goes, memory=128 * MIB, stop=80 * MS)},
            host={"memory": 160 * MIB, "swap": {"device": "nvme", "size": 512 * MIB},
                  "khugepaged": khugepaged},
            sample_interval=MS,
        ))  # fmt: skip
        found[name] = summary["guests"][0]
    broken, mended = found["broken"], found["mended"]
    assert broken["final"]["aligned_huge_bytes"] < 96 * MIB
    assert mended["final"]["aligned_huge_bytes"] == 96 * MIB
    missing = 96 * MIB - broken["final"]["aligned_huge_bytes"]
    assert mended["totals"]["collapses"] == missing // BLOCK > 0
    assert mended["slowdown"] < 0.95 * broken["slowdown"]


# --- both sides -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guest_page", "host_page", "aligned"),
    [(BLOCK, BLOCK, 64), (BLOCK, PAGE, 0), (PAGE, BLOCK, 0)],
)
def test_what_is_huge_on_both_sides(guest_page: int, host_page: int, aligned: int) -> None:
    work = small.phase(pattern=SEQUENTIAL, accesses=16_384)
    final = small.result(
        {"vm": small.guest(work, page_size=guest_page)}, host={"page_size": host_page}
    ).summary["host"]["final"]  # fmt: skip
    assert final["aligned_huge_bytes"] == aligned * MIB
    container = small.result({"c": small.container(work)}, host={"page_size": host_page})
    final = container.summary["host"]["final"]
    assert final["aligned_huge_bytes"] == final["backed_2m_bytes"]


# --- the deferred split -----------------------------------------------------------------


def test_under_pressure_what_nobody_maps_goes_before_anything_is_swapped() -> None:
    """The first half of each block is given back: 1 MiB of it is held until kswapd splits it.

    kswapd has 16 MiB to find, so 16 splits do; the device stays empty.
    """
    made = filled(swap={"device": "nvme", "size": 256 * MIB})
    host, (guest,) = made.host, made.guests
    for address in range(0, guest.config.memory, BLOCK):
        guest.zap(address, MIB)
    partial, free = host.memory.partial_bytes, host.free_bytes
    assert partial >= 32 * MIB
    host.low_bytes, host.high_bytes = free + MIB, free + 16 * MIB
    host.reclaimer.check_watermarks()
    made.env.run(until=made.env.now + S)
    assert host.memory.partial_bytes == partial - 16 * MIB
    assert host.free_bytes == free + 16 * MIB
    assert host.reclaimer.kswapd_ns == 16 * host.costs.thp_split_ns
    assert guest.swap_outs == 0
    ledger.audit(host)
