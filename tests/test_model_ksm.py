"""Same-page merging: what merges, when, what it saves and costs, and what a write undoes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scenarios_small as small
from scenarios_small import BLOCK, KIB, MIB, MS, PAGE

from simvm.hardware import load_costs
from simvm.model import ledger
from simvm.model.engine import Simulation
from simvm.scenario.models import Scenario

COSTS = load_costs()
HEAP = 8 * MIB
ONCE = {"kind": "strided", "stride": PAGE}
FAST = {"pages_to_scan": 10_000}
SAME = {"duplicate": 1.0}


def merging(
    content: dict[str, Any], *phases: dict[str, Any], ksm: dict[str, Any] | None = None,
    guests: int = 2, page_size: int = PAGE, duration: int = 400 * MS, **values: Any,
) -> Scenario:  # fmt: skip
    """Guests of 32 MiB that write 8 MiB once, from end to end, and then rest."""
    work = phases or (small.phase(
        allocate=HEAP, pattern=ONCE, accesses=HEAP // PAGE, write_fraction=1.0
    ),)  # fmt: skip
    base = {
        "count": guests, "memory": 32 * MIB, "page_size": PAGE, "content": content,
        "mergeable": True,
    }  # fmt: skip
    return small.scenario(
        {"vm": small.guest(*work, **{**base, **values})},
        host={"memory": 256 * MIB, "page_size": page_size, "ksm": ksm or FAST},
        duration=duration,
    )  # fmt: skip


def run(of: Scenario) -> tuple[Simulation, dict[str, Any]]:
    made = small.simulate(of)
    ledger.audit(made.host)
    host: dict[str, Any] = small.summary_of(made)["host"]
    return made, host


@pytest.fixture(scope="module")
def same() -> tuple[Simulation, dict[str, Any]]:
    return run(merging(SAME))


@pytest.fixture(scope="module")
def unlike() -> tuple[Simulation, dict[str, Any]]:
    return run(merging({}))


def test_equal_pages_of_two_guests_take_half_the_frames(
    same: tuple[Simulation, dict[str, Any]], unlike: tuple[Simulation, dict[str, Any]]
) -> None:
    """Each guest backs 8 MiB, 512 KiB of struct pages and its tables; all of it has a twin."""
    host, alone = same[1], unlike[1]
    backed = alone["final"]["backed_bytes"]
    assert backed >= 2 * (HEAP + 512 * KIB)
    assert alone["final"]["merged_bytes"] == alone["totals"]["merges"] == 0
    final = host["final"]
    assert final["merged_bytes"] == 2 * final["merged_frames_bytes"] == backed
    assert final["backed_bytes"] == 0
    assert host["totals"]["merges"] == backed // PAGE
    assert final["free_bytes"] - alone["final"]["free_bytes"] == backed // 2


def test_ksmd_pays_for_each_look_and_each_merge(
    same: tuple[Simulation, dict[str, Any]], unlike: tuple[Simulation, dict[str, Any]]
) -> None:
    """A look costs ksm_scan; a merge ksm_merge and a shootdown, with nobody running 1 us."""
    totals = unlike[1]["totals"]
    assert totals["ksmd_ns"] == totals["ksm_pages_scanned"] * COSTS.ksm_scan_ns > 0
    totals = same[1]["totals"]
    merges = totals["merges"] * (COSTS.ksm_merge_ns + COSTS.shootdown_base_ns)
    looks = totals["ksm_pages_scanned"] * COSTS.ksm_scan_ns
    assert totals["ksmd_ns"] == looks + merges


def test_each_page_looked_at_keeps_64_bytes(unlike: tuple[Simulation, dict[str, Any]]) -> None:
    final = unlike[1]["final"]
    items = final["backed_bytes"] // PAGE
    assert final["merge_metadata_bytes"] == -(-items * 64 // PAGE) * PAGE


def test_ksmd_looks_at_so_many_pages_and_sleeps() -> None:
    """Every 20 ms and the time for 100 looks, 100 pages: in 400 ms 19 or 20 times."""
    _, host = run(merging({}, ksm={"pages_to_scan": 100}))
    rounds = 400 * MS // (20 * MS + 100 * COSTS.ksm_scan_ns)
    assert host["totals"]["ksm_pages_scanned"] == 100 * rounds
    assert host["totals"]["ksm_full_scans"] == 0


def test_a_page_must_be_unchanged_for_a_pass_before_it_merges() -> None:
    """The first pass finds each page written, the second one finds it at rest."""
    one_pass = 2 * (HEAP + 512 * KIB) // PAGE
    # A pass takes two wakes, a little after 20 and 40 ms; at 55 ms the second has not begun.
    ksm = {"pages_to_scan": one_pass // 2 + 100}
    _, early = run(merging(SAME, ksm=ksm, duration=55 * MS))
    _, late = run(merging(SAME, ksm=ksm, duration=200 * MS))
    assert early["totals"]["ksm_pages_scanned"] > one_pass
    assert early["totals"]["merges"] == 0
    assert late["totals"]["merges"] > 0.9 * one_pass


def test_pages_that_are_written_all_the_time_never_merge() -> None:
    """4 MiB written over and over: each of the 1,024 pages some 100 times in a pass."""
    busy = small.phase(
        allocate=4 * MIB, pattern=ONCE, accesses=8_000_000, write_fraction=1.0,
        cycles_per_access=100,
    )  # fmt: skip
    made, host = run(merging(SAME, busy, duration=200 * MS))
    assert made.accesses > 1_000_000
    # At rest are the struct pages, 512 KiB of each guest, and nothing of the heap.
    assert host["final"]["merged_bytes"] <= 2 * (512 * KIB + 16 * PAGE)
    assert host["final"]["merged_bytes"] >= 2 * 512 * KIB
    assert host["totals"]["unmerges"] == 0


def test_a_write_to_a_merged_page_takes_a_copy_and_a_fault() -> None:
    """The second round of writes, at 200 ms, finds its 2 MiB merged: 512 faults of each guest.

    Each is a fault of 4 KiB with the copying of a page, and a shootdown that interrupts the
    vCPU that runs.
    """
    again = small.phase(
        name="again", allocate=None, pattern=ONCE, accesses=2 * MIB // PAGE, write_fraction=1.0,
        repeat=2, every=200 * MS,
    )  # fmt: skip
    first = small.phase(allocate=2 * MIB, pattern=None, accesses=None)
    made, host = run(merging(SAME, first, again, duration=600 * MS))
    pages = 2 * MIB // PAGE
    totals = host["totals"]
    assert totals["unmerges"] == pytest.approx(2 * pages, abs=2 * 8)    # and tables
    assert host["final"]["backed_bytes"] == totals["unmerges"] * PAGE
    _, still = run(merging(SAME, first, {**again, "repeat": 1}, duration=600 * MS))
    assert still["totals"]["unmerges"] <= 2 * 8
    # Pages that were merged and written are like no other, and stay.
    merged = host["final"]["merged_bytes"]
    assert merged + totals["unmerges"] * PAGE == still["final"]["merged_bytes"]
    owed = sum(vcpu.owed_ns for guest in made.guests for vcpu in guest.vcpus)
    more = totals["fault_service_ns"] - still["totals"]["fault_service_ns"] + owed
    each = made.host.fault_ns[0] + COSTS.shootdown_base_ns
    assert more / totals["unmerges"] == pytest.approx(each, rel=0.1)


def test_zeroes_share_frames_up_to_the_limit() -> None:
    """Pages of zeroes of both guests are one content, of which a frame serves 256."""
    _, host = run(merging({"zero": 1.0}))
    pages = host["final"]["merged_bytes"] // PAGE
    assert pages > 2 * HEAP // PAGE
    assert host["final"]["merged_frames_bytes"] == -(-pages // 256) * PAGE
    _, few = run(merging({"zero": 1.0}, ksm={**FAST, "max_page_sharing": 16}))
    assert few["final"]["merged_frames_bytes"] == pytest.approx(pages // 16 * PAGE, rel=0.02)


def test_huge_mappings_are_split_to_merge() -> None:
    """Each guest's 8 MiB are four blocks of 2 MiB; and again the parts that have no twin stay."""
    made, host = run(merging({"duplicate": 0.5}, page_size=BLOCK))
    assert host["totals"]["host_splits"] >= 2 * HEAP // BLOCK
    final = host["final"]
    both = final["merged_bytes"] + final["backed_bytes"]
    assert final["merged_bytes"] / both == pytest.approx(0.5, abs=0.03)
    assert final["backed_2m_bytes"] == 0
    _, whole = run(merging({}, page_size=BLOCK))
    assert whole["totals"]["host_splits"] == 0
    assert whole["final"]["backed_2m_bytes"] > 0
    assert made.host.memory.partial_bytes == 0


def test_only_mergeable_memory_is_looked_at() -> None:
    _, host = run(merging(SAME, mergeable=False))
    assert host["totals"]["ksm_pages_scanned"] == host["totals"]["ksmd_ns"] == 0


def test_a_guest_that_ends_leaves_the_frames_to_the_other() -> None:
    made, host = run(merging(SAME))
    frames = host["final"]["merged_frames_bytes"]
    first, second = made.guests
    free = made.host.free_bytes
    first.kill(None)
    ledger.balance(made.host)
    ledger.audit(made.host)
    assert made.host.memory.merged_bytes == second.merged_bytes == frames
    assert made.host.free_bytes > free      # its tables
    second.kill(None)
    ledger.balance(made.host)
    assert made.host.memory.merged_bytes == 0


def test_freed_pages_leave_a_merged_frame_one_by_one() -> None:
    """Zapping one guest's part leaves the frame to the other; zapping both frees it."""
    made, _ = run(merging(SAME))
    first, second = made.guests
    address = int(first.backing.pages_from(0, 1 << 40, 1)[0]) & ~(PAGE - 1)
    held = made.host.memory.merged_bytes
    for guest, left in ((first, held), (second, held - PAGE)):
        guest.zap(address, PAGE)
        assert made.host.memory.merged_bytes == left
        assert guest.backing.page_state(address) is None
        ledger.balance(made.host)
    ledger.audit(made.host)


def test_containers_merge_too() -> None:
    _, host = run(merging(SAME, virtualization="none"))
    assert host["final"]["merged_bytes"] == 2 * host["final"]["merged_frames_bytes"] == 2 * HEAP


def test_the_same_seed_merges_the_same_pages() -> None:
    first, second = (small.result_of(merging({"duplicate": 0.3, "zero": 0.1})) for _ in range(2))
    assert first == second
    other = small.result_of(small.scenario(
        {"vm": small.guest(**merging({"duplicate": 0.3}).guests["vm"].model_dump(mode="python"))},
        host={"ksm": FAST}, seed=2, duration=100 * MS,
    ))  # fmt: skip
    assert other["host"]["totals"] != first["host"]["totals"]


def test_what_the_core_refuses() -> None:
    """A frame is merged once; only a merged one is joined or left; a huge one is split first."""
    made, _ = run(merging({}, page_size=BLOCK))
    backing, memory = made.guests[0].backing, made.host.memory
    state = int(backing.pages_from(0, 1 << 40, 1)[0])
    address = state & ~(PAGE - 1)
    assert state & 2
    assert backing.share(address) is None
    assert backing.split_at(address)
    assert not backing.split_at(address)
    frame = backing.share(address)
    assert frame is not None
    assert memory.sharers(frame) == 1
    assert backing.share(address) is None
    assert not backing.merge(address + PAGE, frame + PAGE)
    assert backing.merge(address + PAGE, frame)
    assert memory.sharers(frame) == backing.merged_pages == 2
    own = memory.frames.allocate_4k()
    with pytest.raises(KeyError):
        backing.unmerge(address + 2 * PAGE, own)
    backing.unmerge(address, own)
    backing.zap(address + PAGE, PAGE)
    assert memory.sharers(frame) == memory.merged_bytes == 0
    gone = np.array([address + PAGE], dtype=np.uint64)
    assert backing.states_of(gone).tolist() == [address + PAGE]
