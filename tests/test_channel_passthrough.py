"""Every operation of pvmemcontrol: leaving it out changes the outcome, by what can be counted.

The guest has 2 MiB pages that it does not zero, unless a test says otherwise. Its region of
32 MiB is 16 of them, and lies in one piece of guest memory.
"""

from __future__ import annotations

from typing import Any

import pytest
import scenarios_small as small
from scenarios_small import BLOCK, GIB, MIB, MS, PAGE

from simvm.hardware import load_costs
from simvm.model import ledger
from simvm.model.engine import Simulation
from simvm.scenario.check import findings

COSTS = load_costs()
SEQUENTIAL = {"kind": "sequential", "stride": PAGE}
NVME = {"device": "nvme", "size": 512 * MIB}
PAGES = 8192  # of 4 KiB, in the region


def fill(*after: str, **values: Any) -> dict[str, Any]:
    """Write each page of 32 MiB once, then send `after`."""
    return small.phase(**{
        "name": "fill", "allocate": 32 * MIB, "pattern": SEQUENTIAL, "accesses": PAGES,
        "write_fraction": 1.0, "hints_after": after, **values,
    })  # fmt: skip


def use(*before: str, **values: Any) -> dict[str, Any]:
    """Send `before`, then read each page once."""
    return fill(**{
        "name": "use", "allocate": None, "write_fraction": 0.0, "hints_before": before, **values,
    })  # fmt: skip


def run(*phases: dict[str, Any], host: dict[str, Any] | None = None, **values: Any) -> Simulation:
    channel = {"kind": "passthrough", **values.pop("channel", {})}
    train = values.pop("train", 64)
    made = small.simulate(small.scenario(
        {"vm": small.guest(*phases, channel=channel, **values)}, host=host, train=train
    ))  # fmt: skip
    ledger.audit(made.host)
    return made


def guest_of(made: Simulation) -> dict[str, Any]:
    guest: dict[str, Any] = small.summary_of(made)["guests"][0]
    return guest


def totals(*phases: dict[str, Any], **values: Any) -> dict[str, int]:
    found: dict[str, int] = guest_of(run(*phases, **values))["totals"]
    return found


def final(*phases: dict[str, Any], **values: Any) -> dict[str, int]:
    found: dict[str, int] = guest_of(run(*phases, **values))["final"]
    return found


SHOOTDOWN = COSTS.shootdown_base_ns + COSTS.shootdown_per_receiver_ns  # one vCPU runs


# --- what a call costs ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "cost", "shootdowns"),
    [
        ("INFO", 0, 0),
        ("DONTDUMP", COSTS.vma_change_ns, 0),
        ("MERGEABLE", COSTS.vma_change_ns, 0),
        ("UNMERGEABLE", COSTS.vma_change_ns, 0),
        ("DONTNEED", 16 * COSTS.zap_2m_ns, 1),
        ("FREE", 16 * (COSTS.unmap_entry_ns + COSTS.reclaim_scan_ns), 1),
        ("PAGEOUT", 16 * (COSTS.zap_2m_ns + COSTS.reclaim_scan_ns), 1),
        ("MPROTECT_R", COSTS.vma_change_ns + 16 * COSTS.unmap_entry_ns, 1),
        ("MLOCK", COSTS.vma_change_ns + 16 * COSTS.reclaim_scan_ns, 0),
    ],
)
def test_a_call_costs_its_way_to_the_vmm_and_what_it_does_there(
    operation: str, cost: int, shootdowns: int
) -> None:
    """Beside the name that the region gets: one call, and the work on 16 pages of 2 MiB."""
    plain = totals(fill(), host={"swap": NVME})
    made = totals(fill(operation), host={"swap": NVME})
    assert plain["hint_calls"] == 1
    assert plain["hint_ns"] == COSTS.hint_call_ns + COSTS.vma_change_ns
    assert made["hint_calls"] == 2
    assert made["hint_failures"] == 0
    assert made["hint_ns"] - plain["hint_ns"] == COSTS.hint_call_ns + cost + shootdowns * SHOOTDOWN
    assert made["shootdowns"] == shootdowns


def test_info_is_one_call_of_the_driver_as_it_starts() -> None:
    """Its host CPU time is beside the vCPUs: no phase pays for it."""
    asked = totals(fill(), channel={"operations": ["INFO", "SET_VMA_ANON_NAME"]})
    assert asked["hint_calls"] == 2
    assert asked["kernel_thread_ns"] == COSTS.hint_call_ns
    silent = totals(fill(), channel={"operations": ["SET_VMA_ANON_NAME"]})
    assert silent["hint_calls"] == 1
    assert silent["kernel_thread_ns"] == 0


def test_a_batch_shares_the_exit() -> None:
    """Two regions grow in turn, 4 KiB of each: every page is a range of its own.

    512 ranges are named and 512 freed: 1,024 calls of one range, or 256 of four. An exit less
    saves 6.3 us less 0.4 us; a part of it goes into longer waits for the mmap lock.
    """
    one = totals(*two_regions(), **SCATTERED)
    four = totals(*two_regions(), **SCATTERED | {"channel": {"batch": 4}})
    assert (one["hint_calls"], four["hint_calls"]) == (1024, 256)
    saved = 768 * (COSTS.hint_call_ns - COSTS.hint_range_ns)
    assert 0.8 * saved < one["hint_ns"] - four["hint_ns"] <= saved


SCATTERED: dict[str, Any] = {
    "page_size": PAGE, "vcpus": 2, "host": {"page_size": PAGE}, "train": 1
}  # fmt: skip


def two_regions(*hints: str) -> list[dict[str, Any]]:
    """Two tasks that fill 1 MiB each at the same pace, so that their pages alternate."""
    return [
        fill(*hints, name=name, region=name, task=name, allocate=MIB, accesses=256, free="all")
        for name in ("left", "right")
    ]


# --- giving memory back -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("backing", "operation", "freed"),
    [
        ("anon", "DONTNEED", True), ("anon", "REMOVE", False), ("anon", "FREE", False),
        ("memfd", "DONTNEED", False), ("memfd", "REMOVE", True), ("memfd", "FREE", False),
    ],
)  # fmt: skip
def test_what_gives_memory_back_depends_on_what_backs_it(
    backing: str, operation: str, freed: bool
) -> None:
    """Anonymous: DONTNEED at once, FREE later. A memfd's page cache is emptied by REMOVE alone."""
    kept = final(fill(), host={"backing": backing})
    guest = guest_of(run(
        fill(free="all"), host={"backing": backing},
        channel={"operations": ["SET_VMA_ANON_NAME", operation]},
    ))  # fmt: skip
    lost = kept["backed_bytes"] - guest["final"]["backed_bytes"]
    assert lost == (32 * MIB if freed else 0)
    unmapped = {("anon", "FREE"), ("memfd", "DONTNEED")}
    assert guest["final"]["held_bytes"] == (32 * MIB if (backing, operation) in unmapped else 0)
    refused = {("anon", "REMOVE"), ("memfd", "FREE")}
    assert guest["hints"][operation] == {
        "ranges": 1, "failed": int((backing, operation) in refused)
    }  # fmt: skip


def test_a_memfds_page_is_mapped_again_and_an_anonymous_one_made_anew() -> None:
    """16 faults each; only the anonymous ones take and zero 2 MiB."""
    faults = {}
    for backing in ("anon", "memfd"):
        faults[backing] = totals(fill("DONTNEED"), use(), host={"backing": backing})
    assert faults["anon"]["slat_faults"] - faults["memfd"]["slat_faults"] == 16
    assert faults["anon"]["slat_remaps"] == 0
    assert faults["memfd"]["slat_remaps"] == 16
    zeroing = small.simulation(small.scenario()).host.fault_ns[1]
    saved = faults["anon"]["fault_service_ns"] - faults["memfd"]["fault_service_ns"]
    assert saved == 16 * (zeroing - COSTS.slat_fault_4k_ns)


def pressed(*first: dict[str, Any], **values: Any) -> dict[str, Any]:
    """A host of 96 MiB: the region, and then one of 64 MiB, for which there is too little left."""
    second = small.phase(
        name="more", region="more", allocate=64 * MIB, pattern=SEQUENTIAL, accesses=16_384,
        write_fraction=1.0,
    )  # fmt: skip
    host = {"memory": 96 * MIB, "swap": NVME, **values.pop("host", {})}
    made = run(*first, second, memory=128 * MIB, host=host, **values)
    return guest_of(made) | {"host": small.summary_of(made)["host"]}


def test_free_is_taken_first_and_without_a_write() -> None:
    """Left out, some of the 32 MiB is swapped out; with it, nothing is, and that is dropped."""
    without, lazy = pressed(fill()), pressed(fill("FREE"))
    assert without["totals"]["swap_outs"] > 1_000
    assert lazy["totals"]["swap_outs"] == 0
    taken = 32 * MIB - lazy["host"]["final"]["lazy_bytes"]
    assert taken >= without["totals"]["swap_outs"] * PAGE - 4 * MIB
    # Nothing is left to do it with: without swap the same is the end of the guest.
    assert pressed(fill(), host={"swap": {"device": "none"}})["killed"]
    assert not pressed(fill("FREE"), host={"swap": {"device": "none"}})["killed"]


def test_a_write_takes_free_back_and_a_read_does_not() -> None:
    written = pressed(fill("FREE"), use(write_fraction=1.0))
    read = pressed(fill("FREE"), use())
    assert written["totals"]["swap_outs"] > 1_000
    assert read["totals"]["swap_outs"] == 0


def test_pageout_evicts_what_is_in_use() -> None:
    """8,192 pages are written, whole folios at a time, and read one by one when they are used."""
    host = {"swap": NVME}
    guest = guest_of(run(fill("PAGEOUT"), host=host))
    kept = final(fill(), host=host)
    assert guest["totals"]["swap_outs"] == PAGES
    assert guest["final"]["swapped_bytes"] == 32 * MIB
    assert kept["backed_bytes"] - guest["final"]["backed_bytes"] == 32 * MIB
    assert totals(fill("PAGEOUT"), use(), host=host)["swap_ins"] == PAGES
    nowhere = guest_of(run(fill("PAGEOUT")))  # no device: nothing happens
    assert nowhere["final"]["backed_bytes"] == kept["backed_bytes"]


# --- locking ----------------------------------------------------------------------------


def test_locked_memory_is_not_reclaimed_and_unlocked_memory_is() -> None:
    """The region fits if it stays; the later one is then swapped instead, which nobody locked."""
    plain, locked = pressed(fill()), pressed(fill("MLOCK"))
    unlocked = pressed(fill("MLOCK", "MUNLOCK"))
    held = {
        name: next(r for r in guest["regions"] if r["name"] == "heap")["swapped_bytes"]
        for name, guest in {"plain": plain, "locked": locked, "unlocked": unlocked}.items()
    }  # fmt: skip
    assert held["plain"] >= 4 * MIB
    assert held["locked"] == 0
    assert held["unlocked"] >= 4 * MIB
    assert locked["final"]["locked_bytes"] == 32 * MIB
    assert unlocked["final"]["locked_bytes"] == 0
    assert locked["totals"]["swap_outs"] > 1_000


def test_locking_backs_what_nobody_has_touched() -> None:
    """One page of a guest's 1 GiB page is touched: a 2 MiB fault. Locked, all of it is there."""
    touch = fill(allocate=GIB, accesses=1)
    page: dict[str, Any] = {"page_size": GIB, "memory": 4 * GIB}
    plain = final(touch, **page)
    locked = guest_of(run({**touch, "hints_after": ("MLOCK",)}, **page))
    assert locked["final"]["backed_bytes"] - plain["backed_bytes"] == GIB - BLOCK
    assert locked["final"]["held_bytes"] == GIB - BLOCK
    assert locked["totals"]["slat_faults"] == totals(touch, **page)["slat_faults"]


def test_locking_brings_back_what_was_swapped_out() -> None:
    guest = guest_of(run(fill("PAGEOUT", "MLOCK"), host={"swap": NVME}))
    assert guest["totals"]["swap_ins"] == PAGES
    assert guest["final"]["swapped_bytes"] == 0


@pytest.mark.parametrize("operation", ["DONTNEED", "FREE", "PAGEOUT"])
def test_locked_memory_cannot_be_given_back_before_munlock(operation: str) -> None:
    host = {"swap": NVME}
    refused = guest_of(run(fill("MLOCK", operation), host=host))
    assert refused["hints"][operation] == {"ranges": 1, "failed": 1}
    assert refused["final"]["backed_bytes"] == final(fill(), host=host)["backed_bytes"]
    done = guest_of(run(fill("MLOCK", "MUNLOCK", operation), host=host))
    assert done["hints"][operation] == {"ranges": 1, "failed": 0}
    assert done["totals"]["shootdowns"] == 1


# --- protection -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "writes", "failure"),
    [
        (("MPROTECT_NONE",), 0.0, "touched"),
        (("MPROTECT_NONE", "MPROTECT_RW"), 1.0, None),
        (("MPROTECT_NONE", "MPROTECT_W"), 1.0, None),
        (("MPROTECT_NONE", "MPROTECT_R"), 0.0, None),
        (("MPROTECT_R",), 0.0, None),
        (("MPROTECT_R",), 0.01, "wrote to"),
        (("MPROTECT_R", "MPROTECT_RW"), 0.01, None),
        (("MPROTECT_W",), 0.01, None),
    ],
)
def test_a_forbidden_access_ends_the_guest(
    sent: tuple[str, ...], writes: float, failure: str | None
) -> None:
    guest = guest_of(run(fill(*sent), use(write_fraction=writes)))
    assert guest["totals"]["protection_faults"] == int(failure is not None)
    if failure is None:
        assert not guest["killed"]
        assert guest["totals"]["slat_remaps"] == 16  # each page is found and mapped again
        assert guest["totals"]["slat_faults"] == totals(fill())["slat_faults"]
    else:
        assert guest["failure"].startswith(failure)


def test_only_what_is_protected_is_forbidden() -> None:
    """Two regions; one is protected, the other goes on."""
    other = fill(name="other", region="other", allocate=8 * MIB, accesses=2_048)
    use_other = {**other, "name": "use-other", "allocate": None}
    guest = guest_of(run(fill("MPROTECT_NONE"), other, use_other))
    assert not guest["killed"]
    assert guest["totals"]["accesses"] == PAGES + 2 * 2_048


# --- what the host knows ----------------------------------------------------------------


def test_names_tell_the_host_whose_memory_it_holds() -> None:
    """Left out, the host sees one mapping of 512 MiB and cannot tell the region from the rest."""
    named, silent = guest_of(run(fill())), guest_of(run(fill(), channel={"operations": []}))
    assert {row["name"]: row["backed_bytes"] for row in named["host_view"]}["heap"] == 32 * MIB
    assert named["regions"][0]["named_to_host"]
    assert named["final"]["host_vmas"] == 3
    assert [row["name"] for row in silent["host_view"]] == [None]
    assert silent["host_view"][0]["backed_bytes"] == silent["final"]["backed_bytes"]
    assert not silent["regions"][0]["named_to_host"]
    assert silent["final"]["host_vmas"] == 1
    assert silent["totals"]["hint_ns"] == 0


def test_a_name_follows_memory_to_its_next_region() -> None:
    """The second region gets the pages of the first, and the host a new name for them."""
    again = fill(name="again", region="next", free="none")
    guest = guest_of(run(fill(free="all"), again))
    view = {row["name"]: row["backed_bytes"] for row in guest["host_view"]}
    assert view["next"] == 32 * MIB
    assert not view.get("heap")


@pytest.mark.parametrize(
    ("operation", "anonymous", "shared"), [("MERGEABLE", 3, 1), ("DONTDUMP", 3, 3)]
)
def test_flags_split_vmas(operation: str, anonymous: int, shared: int) -> None:
    """A flag on the region's 32 MiB of 512: three VMAs. Merging is not for shared memory."""
    for backing, vmas in (("anon", anonymous), ("memfd", shared)):
        made = run(fill(operation), channel={"operations": []}, host={"backing": backing})
        (guest,) = made.guests
        assert guest_of(made)["final"]["host_vmas"] == vmas
        if operation == "MERGEABLE":
            (start, length), *_ = guest.extents(guest.regions["app", "heap"])
            expected = [(start, start + length)] if backing == "anon" else []
            assert guest.control.vmas.mergeable() == expected


def test_unmergeable_takes_mergeable_back() -> None:
    made = run(fill("MERGEABLE", "UNMERGEABLE"), channel={"operations": []})
    assert made.guests[0].control.vmas.mergeable() == []
    assert guest_of(made)["final"]["host_vmas"] == 1


@pytest.mark.parametrize(
    ("hints", "later", "merged", "copies"),
    [((), (), 0, 0), (("MERGEABLE",), (), 16 * MIB, 0),
     (("MERGEABLE",), ("UNMERGEABLE",), 0, 4_096)],
)  # fmt: skip
def test_what_is_mergeable_is_merged_and_unmergeable_undoes_it(
    hints: tuple[str, ...], later: tuple[str, ...], merged: int, copies: int
) -> None:
    """Two guests with 8 MiB each of the same content: 2,048 pages that each have a twin.

    Nothing else is mergeable, and ksmd has 300 ms for its two passes. UNMERGEABLE copies each
    of the 4,096 pages; each copy is a fault of 4 KiB and a shootdown.
    """
    work = [
        fill(*hints, allocate=8 * MIB, accesses=2_048),
        use(hints_after=later, accesses=1, think_time=300 * MS),
    ]
    made = small.simulate(small.scenario(
        {"vm": small.guest(*work, count=2, memory=32 * MIB, page_size=PAGE,
                           content={"duplicate": 1.0}, channel={"kind": "passthrough"})},
        host={"memory": 256 * MIB, "page_size": PAGE, "ksm": {"pages_to_scan": 10_000}},
        duration=400 * MS,
    ))  # fmt: skip
    ledger.audit(made.host)
    host = small.summary_of(made)["host"]
    assert host["final"]["merged_bytes"] == merged
    assert host["totals"]["unmerges"] == copies
    each = made.host.fault_ns[0] + COSTS.shootdown_base_ns
    assert host["totals"]["hint_ns"] >= copies * each


def test_vmas_run_out() -> None:
    """Pages of two regions alternate, so that each needs a VMA; of these a VMM may have 100."""
    enough = guest_of(run(*keep(two_regions()), **SCATTERED))
    assert enough["totals"]["hint_failures"] == 0
    assert enough["final"]["host_vmas"] == 512 + 2  # and what lies below and above
    few = SCATTERED | {"host": {"page_size": PAGE, "max_map_count": 100}}
    short = guest_of(run(*keep(two_regions()), **few))
    assert short["final"]["host_vmas"] == 100
    assert short["totals"]["hint_failures"] > 300
    known = sum(row["backed_bytes"] for row in short["host_view"] if row["name"] is not None)
    assert known == 98 * PAGE
    assert not any(region["named_to_host"] for region in short["regions"])


def keep(phases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**phase, "free": "none"} for phase in phases]


def test_a_boundary_inside_a_huge_page_splits_it_and_keeps_it_small() -> None:
    """A region of 4 KiB pages begins and ends within 2 MiB pages of the host: two splits."""
    odd = fill(allocate=31 * MIB, accesses=7_936)
    small_pages: dict[str, Any] = {"page_size": PAGE}
    named = guest_of(run(odd, **small_pages))
    silent = guest_of(run(odd, channel={"operations": []}, **small_pages))
    assert silent["totals"]["host_splits"] == 0
    assert silent["final"]["backed_4k_bytes"] == 0
    assert 1 <= named["totals"]["host_splits"] <= 2 * named["hints"]["SET_VMA_ANON_NAME"]["ranges"]
    assert named["final"]["backed_4k_bytes"] == named["totals"]["host_splits"] * BLOCK
    # What is dropped there comes back in small pages.
    back = guest_of(run({**odd, "hints_after": ("DONTNEED",)},
                        {**odd, "name": "use", "allocate": None}, **small_pages))  # fmt: skip
    assert back["totals"]["slat_faults_4k"] > 0


def test_faults_wait_for_a_call_that_changes_the_mapping() -> None:
    """One task changes flags again and again, while another takes faults on its own region."""
    busy = fill(*("DONTDUMP", "MERGEABLE", "UNMERGEABLE") * 200, name="busy", task="one",
                allocate=2 * MIB, accesses=512)  # fmt: skip
    faults = small.phase(
        name="faults", region="other", task="two", allocate=64 * MIB, accesses=16_384,
        pattern=SEQUENTIAL,
    )  # fmt: skip
    both: dict[str, Any] = {"vcpus": 2, "page_size": PAGE, "host": {"page_size": PAGE}}
    changing = totals(busy, faults, **both)
    quiet = totals({**busy, "hints_after": ()}, faults, **both)
    assert quiet["fault_wait_ns"] < changing["fault_wait_ns"]
    assert changing["fault_wait_ns"] > 10 * COSTS.vma_change_ns


# --- under shadow paging, and on hugetlb -------------------------------------------------


def test_operations_reach_a_shadow_table() -> None:
    """What is held leaves the shadow tables too; a write to what is protected is seen there."""
    shadow: dict[str, Any] = {"virtualization": "shadow"}
    held = guest_of(run(fill("FREE"), use(), **shadow))
    assert held["totals"]["slat_remaps"] == 16
    assert guest_of(run(fill("MPROTECT_R"), use(), **shadow))["failure"] is None
    wrote = guest_of(run(fill("MPROTECT_R"), use(write_fraction=0.01), **shadow))
    assert wrote["failure"].startswith("wrote to")


def test_a_hugetlb_page_is_dropped_and_protected_whole_and_has_no_name() -> None:
    pool = {"backing": "hugetlb", "hugetlb": {"page_size": BLOCK, "size": 512 * MIB}}
    guest = guest_of(run(
        fill("FREE", "PAGEOUT", "MERGEABLE", "DONTNEED", "MLOCK", "MPROTECT_R"), use(), host=pool
    ))  # fmt: skip
    failed = {name for name, made in guest["hints"].items() if made["failed"]}
    assert failed == {"SET_VMA_ANON_NAME", "FREE", "PAGEOUT"}
    assert guest["totals"]["slat_remaps"] == 16  # MLOCK has made them anew
    assert guest["final"]["locked_bytes"] == 0


# --- what a scenario may not say ---------------------------------------------------------


@pytest.mark.parametrize(
    ("hints", "guest", "rule"),
    [
        (["MLOCK"], {}, None),
        (["MLOCK"], {"channel": {"kind": "none"}}, "passthrough channel"),
        (["MLOCK"], {"virtualization": "none"}, "passthrough channel"),
        ([], {"channel": {"kind": "none"}}, None),
        (["MERGEABLE"], {"virtualization": "shadow"}, "not modelled"),
        (["MLOCK"], {"virtualization": "shadow"}, None),
    ],
)
def test_hints_are_for_a_guest_whose_host_hears_them(
    hints: list[str], guest: dict[str, Any], rule: str | None
) -> None:
    values = {"channel": {"kind": "passthrough"}, **guest}
    of = small.scenario({"vm": small.guest(fill(*hints), **values)}, host={"ksm": {}})
    found = [each for each in findings(of) if "hints" in each.key]
    assert [each.key for each in found] == (
        ["guest.vm.workload.fill.hints_after"] if rule is not None else []
    )
    assert all(str(rule) in each.rule for each in found)
