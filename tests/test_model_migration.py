"""Live migration: how long it takes, what it sends, and what is left when it is cut short."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scenarios_small as small
from scenarios_small import BLOCK, KIB, MIB, MS, PAGE, S

from simvm.model import ledger
from simvm.model.engine import Simulation
from simvm.model.migration import _runs
from simvm.model.queues import Process
from simvm.scenario.models import Scenario

SMALL = {"page_size": 4 * KIB}
WRITER = {"kind": "sequential", "stride": PAGE}


def idle(allocate: int = 64 * MIB) -> dict[str, Any]:
    """A phase that touches all pages of its region once, and then lasts."""
    return small.phase(
        allocate=allocate, pattern=WRITER, accesses=10**9, cycles_per_access=1_000_000,
    )  # fmt: skip


def writer(allocate: int, cycles: int) -> dict[str, Any]:
    """A phase that writes page after page, one in so many cycles, round and round."""
    return small.phase(
        allocate=allocate, pattern=WRITER, accesses=10**9, cycles_per_access=cycles,
        write_fraction=1.0,
    )  # fmt: skip


def vm(*phases: dict[str, Any], **values: Any) -> dict[str, Any]:
    """A guest of 128 MiB whose kernel has 16 MiB: 14 of boot and 2 of struct pages."""
    return small.guest(*phases, **{"memory": 128 * MIB, "boot": 14 * MIB, **values})


def host(bandwidth: int, parallel: int = 1, **values: Any) -> dict[str, Any]:
    return {"migration": {"bandwidth": bandwidth, "parallel": parallel}, **values}


def life(made: Simulation, index: int = 0) -> dict[str, Any]:
    return made.guests[index].life.summary()


# --- in ---------------------------------------------------------------------------------


@pytest.mark.parametrize("page_size", [4 * KIB, 2 * MIB])
def test_a_guest_comes_in_as_fast_as_the_line_allows(page_size: int) -> None:
    """80 MiB at 80 MiB/s take a second: the kernel's 16 MiB, and 64 of a region. What is backed
    grows by 8 MiB in each 100 ms, within the 2 MiB that are on the line and the few that guest
    page tables take; then its program finds all of it mapped and takes no fault that backs."""
    guest = vm(idle(), migrate_in={"resident": 80 * MIB})
    of = small.scenario(
        {"vm": guest}, host=host(80 * MIB, page_size=page_size), duration=1_500 * MS,
        sample_interval=100 * MS,
    )  # fmt: skip
    made = small.simulation(of)
    recorded: list[tuple[int, int]] = []

    def watch() -> Process:
        while True:
            yield made.env.timeout(100 * MS)
            recorded.append((made.env.now, made.guests[0].backed_bytes))

    made.env.process(watch())
    made.run()
    came = life(made)["migrated_in"]
    assert came["bytes"] == 80 * MIB
    assert S <= came["end_ns"] < S + 5 * MS     # and the last chunk is written
    for now, backed in recorded[:9]:
        assert abs(backed - 80 * MIB * now // S) <= 3 * BLOCK
    summary = small.summary_of(made)["guests"][0]
    assert summary["totals"]["migrated_in_bytes"] == 80 * MIB
    assert summary["totals"]["accesses"] > 0
    assert summary["totals"]["slat_faults"] <= 2      # nothing but a table or two
    assert summary["totals"]["slat_remaps"] > 0
    assert summary["phases"][0]["start_ns"] == came["end_ns"]
    assert 80 * MIB <= summary["final"]["touched_bytes"] < 81 * MIB
    ledger.audit(made.host)


def test_what_comes_in_is_written_by_a_thread_of_the_vmm() -> None:
    """A copy of 80 MiB, and a page fault of the host's for each 4 KiB of them."""
    guest = vm(migrate_in={"resident": 16 * MIB}, workload=[])
    made = small.simulate(small.scenario(
        {"vm": guest}, host=host(1 << 40, **SMALL), duration=S,
    ))  # fmt: skip
    (guest_,) = made.guests
    costs, pages = made.host.costs, 16 * MIB // PAGE
    each = made.host.container_fault_ns[0]
    copy = 16 * MIB * S // costs.copy_bandwidth_bytes_per_s
    assert guest_.kernel_thread_ns == pytest.approx(pages * each + copy, rel=0.001)
    # The line is no limit here, so the thread is.
    assert life(made)["migrated_in"]["end_ns"] == pytest.approx(pages * each + copy, rel=0.01)
    assert guest_.backed_bytes == guest_.held_bytes == 16 * MIB


@pytest.mark.parametrize(("parallel", "ends"), [(1, (500, 1000)), (2, (1000, 1000))])
def test_migrations_share_the_line(parallel: int, ends: tuple[int, int]) -> None:
    """Two guests of 40 MiB at 80 MiB/s: one after the other they take half a second each, and
    the second holds nothing before; side by side both take a second."""
    guest = vm(idle(), count=2, migrate_in={"resident": 40 * MIB})
    made = small.simulate(small.scenario(
        {"vm": guest}, host=host(80 * MIB, parallel), duration=1_200 * MS,
    ))  # fmt: skip
    came = [life(made, index) for index in range(2)]
    for one, end in zip(came, ends, strict=True):
        assert one["migrated_in"]["end_ns"] == pytest.approx(end * MS, abs=30 * MS)
    assert came[0]["arrived_ns"] == 0
    second = came[1]["arrived_ns"]
    assert second == (0 if parallel == 2 else came[0]["migrated_in"]["end_ns"])


def test_what_comes_in_may_be_reclaimed_on_the_way() -> None:
    """A host of 64 MiB takes in 80: what is over goes to swap, kswapd and the thread see to it."""
    guest = vm(idle(), migrate_in={"resident": 80 * MIB})
    swap = {"device": "nvme", "size": 256 * MIB}
    made = small.simulate(small.scenario(
        {"vm": guest}, host=host(400 * MIB, memory=64 * MIB, swap=swap), duration=600 * MS,
    ))  # fmt: skip
    assert life(made)["migrated_in"]["end_ns"] is not None
    (guest_,) = made.guests
    assert guest_.swap_outs * PAGE > 16 * MIB
    assert guest_.backed_bytes + guest_.swapped_bytes >= 80 * MIB
    ledger.audit(made.host)


def test_a_guest_may_come_from_a_pool_of_huge_pages() -> None:
    guest = vm(idle(), migrate_in={"resident": 80 * MIB})
    pool = {"page_size": 2 * MIB, "size": 128 * MIB}
    made = small.simulate(small.scenario(
        {"vm": guest}, host=host(400 * MIB, backing="hugetlb", hugetlb=pool), duration=300 * MS,
    ))  # fmt: skip
    assert life(made)["migrated_in"]["bytes"] == 80 * MIB
    assert 80 * MIB <= made.guests[0].backed_bytes <= 84 * MIB


def test_a_region_that_follows_a_series_comes_as_large_as_it_is_then() -> None:
    """40 MiB from the start of the day on, 24 MiB half a day later; the guest may bring up to
    56. What it then writes of its region once more is there."""
    usage = {"kind": "diurnal", "period": 10 * S, "peak_at": 0, "low": 24 * MIB, "high": 40 * MIB,
             "step": S}  # fmt: skip
    work = small.phase(
        allocate=None, accesses=None, access_rate=1_000, interval=100 * MS, usage=usage,
        duration=10 * S,
    )  # fmt: skip
    guest = vm(work, migrate_in={"resident": 56 * MIB})
    for start, size in ((0, 40 * MIB), (5 * S, 24 * MIB)):
        made = small.simulate(small.scenario(
            {"vm": {**guest, "start": start}}, host=host(400 * MIB), duration=start + 800 * MS,
        ))  # fmt: skip
        assert life(made)["migrated_in"]["bytes"] == 16 * MIB + size
        totals = small.summary_of(made)["guests"][0]["totals"]
        assert totals["slat_faults"] <= 2
        assert totals["accesses"] >= size // PAGE
        ledger.audit(made.host)


# --- out --------------------------------------------------------------------------------


def test_an_idle_guest_leaves_in_one_round() -> None:
    """All that is backed is sent once: 64 MiB/s take as many seconds. Then it is free."""
    guest = vm(idle(32 * MIB), lifetime=2 * S, migrate_in={"resident": 48 * MIB}, migrate_out={})
    made = small.simulation(small.scenario({"vm": guest}, host=host(64 * MIB), duration=4 * S))
    free = made.host.free_bytes
    seen: list[int] = []

    def watch() -> Process:
        yield made.env.timeout(2 * S)
        seen.append(made.guests[0].backed_bytes)

    made.env.process(watch())
    made.run()
    left = life(made)["migrated_out"]
    assert left["start_ns"] == 2 * S
    assert left["bytes"] == pytest.approx(seen[0], rel=0.001)
    assert left["rounds"] == 1
    took = left["end_ns"] - left["start_ns"]
    assert took == pytest.approx(seen[0] * S // (64 * MIB), rel=0.01)
    assert left["downtime_ns"] < MS
    assert life(made)["departed_ns"] == left["end_ns"]
    assert made.host.free_bytes == free
    ledger.audit(made.host)


@pytest.mark.parametrize("page_size", [4 * KIB, 2 * MIB])
def test_rounds_are_a_geometric_series(page_size: int) -> None:
    """The guest writes 8,000 pages a second, 31.25 MiB/s of the 125 MiB/s of the line: what is
    dirty after a round is a quarter of what was sent in it. Of V = 80 MiB these are 20, 5, 1.25
    and 0.31 MiB; the line takes 0.5 MiB in a downtime of 4 ms, so there are four rounds, and what
    is sent is V · (1 + 1/4 + 1/16 + 1/64 + 1/256). Host pages of 2 MiB are split, and make no
    difference but for the block that guest page tables take."""
    cycles = 2_000_000_000 // 8_000
    guest = vm(
        writer(64 * MIB, cycles), migrate_in={"resident": 80 * MIB}, start=0,
        lifetime=2 * S, migrate_out={"downtime": 4 * MS}, page_size=4 * KIB,
    )  # fmt: skip
    of = small.scenario(
        {"vm": guest}, host=host(125 * MIB, page_size=page_size), duration=4 * S
    )
    made = small.simulation(of)
    guest_ = made.guests[0]
    end, unsent = guest_.life.end, []

    def look_and_end() -> None:
        pages = np.arange(0, guest_.memory.size, PAGE, dtype=np.uint64)
        unsent.append(int((guest_.backing.states_of(pages) & np.uint64(1)).sum()))
        end()

    guest_.life.end = look_and_end      # type: ignore[method-assign]
    made.run()
    left = life(made)["migrated_out"]
    assert left["rounds"] == 4
    assert unsent == [0]    # nothing was written after it was sent last
    volume = 80 * MIB + (page_size == 2 * MIB) * BLOCK
    series = sum(volume / 4**power for power in range(5))
    assert left["bytes"] == pytest.approx(series, rel=0.02)
    took = left["end_ns"] - left["start_ns"]
    assert took == pytest.approx(series / (125 * MIB) * S, rel=0.03)
    assert left["downtime_ns"] == pytest.approx(volume / 256 / (125 * MIB) * S, rel=0.15)
    assert left["downtime_ns"] < 4 * MS
    assert (made.guests[0].host_splits > 0) == (page_size == 2 * MIB)
    ledger.audit(made.host)


def test_a_guest_that_writes_faster_than_the_line_is_stopped_by_the_timeout() -> None:
    """It dirties all of its 16 MiB within a second. At 16 MiB/s the first round takes two seconds
    and the second one; after 2.5 s the guest is stopped in the middle of that. The rest of it and
    what is dirty after it take 1.5 s. Without a timeout it goes on for as long as the run does."""
    for timeout, done in ((2_500 * MS, True), (None, False)):
        guest = vm(
            writer(16 * MIB, 100_000), lifetime=S, migrate_out={"timeout": timeout},
        )  # fmt: skip
        made = small.simulate(small.scenario(
            {"vm": guest}, host=host(16 * MIB, **SMALL), duration=8 * S,
        ))  # fmt: skip
        left = life(made)["migrated_out"]
        assert made.guests[0].alive != done
        assert (left["end_ns"] is not None) == done
        assert left["rounds"] >= (2 if done else 5)
        if done:
            assert left["downtime_ns"] == pytest.approx(1_500 * MS, rel=0.02)
            assert left["end_ns"] - left["downtime_ns"] == pytest.approx(3_500 * MS, rel=0.02)


def test_the_guest_goes_on_while_it_leaves() -> None:
    """Accesses a second before the departure and in it are alike. The timeout stops the
    guest in its first round, and its phase ends there."""
    guest = vm(writer(16 * MIB, 100_000), lifetime=S, migrate_out={"timeout": S})
    result = small.run(small.scenario(
        {"vm": guest}, host=host(24 * MIB, **SMALL), duration=4 * S, sample_interval=250 * MS,
    ))  # fmt: skip
    left = small.one(result)["life"]["migrated_out"]
    rows = result.timeline.to_pandas()
    done = rows[rows["scope"] == "host"].set_index("time_ns")["accesses"]
    before = done[S] - done[S // 2]
    during = done[2 * S] - done[3 * S // 2]
    assert 2 * S <= left["end_ns"] - left["downtime_ns"] < left["end_ns"]
    assert 0.97 < during / before <= 1.0
    (phase,) = small.one(result)["phases"]
    assert phase["end_ns"] == left["end_ns"] - left["downtime_ns"]


def test_departures_and_arrivals_take_turns() -> None:
    """Three of 16 MiB leave at once, 0.25 s each at 64 MiB/s; one that arrives meanwhile waits."""
    leaves = vm(count=3, workload=[], stop=S, migrate_out={})
    comes = vm(workload=[], start=S + 100 * MS, migrate_in={"resident": 16 * MIB})
    made = small.simulate(small.scenario(
        {"leaves": leaves, "comes": comes}, host=host(64 * MIB, **SMALL), duration=3 * S,
    ))  # fmt: skip
    ends = [life(made, index)["departed_ns"] for index in range(3)]
    for turn, end in enumerate(ends, 1):
        assert end == pytest.approx(S + turn * 250 * MS, abs=10 * MS)
    assert life(made, 3)["arrived_ns"] == ends[2]
    assert life(made, 3)["migrated_in"]["end_ns"] == pytest.approx(ends[2] + S // 4, abs=10 * MS)


def test_work_that_is_done_waits_for_a_departure_that_has_begun() -> None:
    """The phase is over after 0.6 s; the guest left at 0.5 s and needs a quarter of a second."""
    work = small.phase(allocate=2 * MIB, accesses=12_000, cycles_per_access=100_000)
    guest = vm(work, lifetime=500 * MS, migrate_out={})
    made = small.simulate(small.scenario({"vm": guest}, host=host(64 * MIB, **SMALL)))
    assert life(made)["departed_ns"] == pytest.approx(780 * MS, abs=20 * MS)
    assert made.env.now == life(made)["departed_ns"]
    (record,) = made.tasks[1][0].records
    assert record.accesses == 12_000


def test_the_same_seed_gives_the_same_bytes() -> None:
    guest = vm(
        writer(16 * MIB, 1_000_000), count=4, lifetime={"mean": 300 * MS},
        arrivals={"kind": "poisson", "mean_interval": 100 * MS},
        migrate_in={"resident": 24 * MIB}, migrate_out={},
    )  # fmt: skip
    of = small.scenario({"vm": guest}, host=host(128 * MIB), duration=3 * S)
    first, second = small.run(of), small.run(of)
    assert first.summary == second.summary
    assert first.timeline.to_pandas().equals(second.timeline.to_pandas())
    assert first.summary["host"]["totals"]["migrated_out_bytes"] > 24 * MIB


# --- nothing that was written is lost ---------------------------------------------------


def test_writes_cost_a_fault_each_where_nothing_logs_them() -> None:
    """Without page-modification logging (AMD) KVM write-protects: a fault for each page that
    is written after a look. Intel's logging is taken as free."""
    spent = {}
    for cpu in ("sapphire_rapids", "zen4"):
        guest = vm(writer(16 * MIB, 100_000), lifetime=S, migrate_out={"timeout": 3_500 * MS})
        made = small.simulate(small.scenario(
            {"vm": guest}, host=host(16 * MIB, cpu=cpu, **SMALL), duration=9 * S,
        ))  # fmt: skip
        left = life(made)["migrated_out"]
        parts = small.summary_of(made)["guests"][0]["elapsed"]
        faults = small.summary_of(made)["guests"][0]["totals"]["slat_faults"]
        again = (left["bytes"] - faults * PAGE) // PAGE
        spent[cpu] = parts["fault_service_ns"] - faults * made.host.fault_ns[0], again
    each = made.host.costs.slat_fault_4k_ns
    assert spent["sapphire_rapids"][0] < 100 * each
    # The last look comes when the guest is stopped, and what it found is paid by nobody.
    extra, again = spent["zen4"]
    assert again > 8_000
    assert extra == pytest.approx((again - 4_096) * each, rel=0.02)


def test_writes_through_the_tlb_are_seen_again() -> None:
    """The guest writes one MiB round and round, all of which its TLB holds with D set. A look
    clears D and flushes: so the same MiB is dirty after each round, which is 1/64 s, and the
    line is in use to the timeout and for one round more."""
    guest = vm(writer(MIB, 20_000), lifetime=S, migrate_out={"downtime": MS, "timeout": S})
    made = small.simulate(small.scenario(
        {"vm": guest}, host=host(64 * MIB, **SMALL), duration=3 * S,
    ))  # fmt: skip
    left = life(made)["migrated_out"]
    rounds = 1 + (64 * MIB - made.guests[0].peaks["backed_bytes"]) // MIB
    assert left["rounds"] == pytest.approx(rounds, abs=4)
    assert left["bytes"] == pytest.approx(65 * MIB, rel=0.05)


def mid_round(of: Scenario, at: int) -> Simulation:
    """A simulation that has come to a moment in a migration."""
    made = small.simulation(of)

    def hold() -> Process:
        yield made.env.timeout(at)
        raise Held

    made.env.process(hold())
    with pytest.raises(Held):
        made.run()
    return made


class Held(Exception):
    """The simulation has come to where the test looks."""


def test_what_is_evicted_dirty_is_sent_again() -> None:
    """A page that was written after it was sent goes to swap, and its D with it: the next round
    sends it all the same."""
    guest = vm(writer(16 * MIB, 100_000), lifetime=S, migrate_out={})
    swap = {"device": "nvme", "size": 256 * MIB}
    made = mid_round(
        small.scenario({"vm": guest}, host=host(16 * MIB, swap=swap, **SMALL), duration=8 * S),
        1_500 * MS,
    )  # fmt: skip
    (guest_,) = made.guests
    sender = guest_.life._sender
    assert sender is not None
    backing, end = guest_.backing, guest_.memory.size
    addresses = np.arange(0, end, PAGE, dtype=np.uint64)
    states = backing.states_of(addresses)
    dirty = {int(state) & ~(PAGE - 1) for state in states if int(state) & 1}
    assert 1_000 < len(dirty) <= 4_100
    made.host.reclaimer.page_out_range(backing, 0, end)
    assert guest_.backed_bytes == 0
    assert sender.noted == dirty


def test_what_ksmd_has_looked_at_is_sent_again() -> None:
    """ksmd clears D in each look, some 20 times a round here. What is sent is as without it."""
    sent = {}
    for ksm in (None, {"pages_to_scan": 100_000, "sleep": 20 * MS}):
        guest = vm(
            writer(32 * MIB, 250_000), migrate_in={"resident": 48 * MIB}, lifetime=S,
            migrate_out={"downtime": 4 * MS}, mergeable=True,
        )  # fmt: skip
        of = small.scenario({"vm": guest}, host=host(125 * MIB, ksm=ksm, **SMALL), duration=3 * S)
        made = small.simulate(of)
        sent[ksm is not None] = life(made)["migrated_out"]
        assert made.guests[0].merges == 0
    assert sent[True]["rounds"] == sent[False]["rounds"] > 2
    assert sent[True]["bytes"] == pytest.approx(sent[False]["bytes"], rel=0.02)


def test_what_lies_on_swap_is_read_and_sent() -> None:
    """Half of a guest is on swap when it leaves: all of it is sent, once."""
    work = small.phase(allocate=64 * MIB, accesses=16_384, pattern=WRITER, write_fraction=1.0)
    guest = vm(work, lifetime=S, migrate_out={}, memcg={"max": 40 * MIB})
    swap = {"device": "nvme", "size": 256 * MIB}
    made = small.simulation(small.scenario(
        {"vm": guest}, host=host(160 * MIB, swap=swap), duration=3 * S,
    ))  # fmt: skip
    guest_ = made.guests[0]
    seen: list[int] = []
    away: set[int] = set()
    came, note = [], guest_.swapped_in

    def watch() -> Process:
        yield made.env.timeout(S)
        seen.extend((guest_.backed_bytes, guest_.swapped_bytes))
        away.update(guest_.backing.swapped(0, guest_.memory.size))

    def swapped_in(address: int, slot: int, frame: int) -> None:
        came.append(address)
        note(address, slot, frame)

    guest_.swapped_in = swapped_in      # type: ignore[method-assign]
    made.env.process(watch())
    made.run()
    backed, swapped = seen
    assert away <= set(came)
    assert swapped > 32 * MIB
    left = life(made)["migrated_out"]
    assert left["bytes"] == pytest.approx(backed + swapped, rel=0.01)
    assert made.guests[0].peaks["backed_bytes"] <= 40 * MIB
    assert made.host.swap.used_bytes == 0
    ledger.audit(made.host)


def test_what_a_guest_frees_meanwhile_is_not_sent() -> None:
    """32 of its 48 MiB go back to the host as it begins to leave, through its channel."""
    first = small.phase(
        name="first", allocate=32 * MIB, pattern=WRITER, accesses=8_192, cycles_per_access=244_000,
        free="all",
    )  # fmt: skip
    guest = vm(first, lifetime=950 * MS, migrate_out={}, channel={"kind": "passthrough"})
    made = small.simulate(small.scenario({"vm": guest}, host=host(16 * MIB), duration=5 * S))
    left = life(made)["migrated_out"]
    assert left["rounds"] == 1
    assert 16 * MIB < left["bytes"] < 22 * MIB


# --- cut short --------------------------------------------------------------------------


def crowd(duration: int = 400 * MS, **values: Any) -> Scenario:
    """One that stays, one that leaves and one that arrives, on a host that is too small, with
    merging; all at once from 50 ms on."""
    work = small.phase(
        allocate=48 * MIB, accesses=10**9, cycles_per_access=4_000, write_fraction=0.5
    )
    common = {
        "memory": 64 * MIB, "boot": 4 * MIB, "vmm_overhead": MIB, "mergeable": True,
        "content": {"duplicate": 0.3, "zero": 0.2},
    }  # fmt: skip
    out = {"lifetime": 50 * MS, "migrate_out": {"timeout": 150 * MS}}
    return small.scenario(
        {
            "stays": small.guest(work, **common),
            "leaves": small.guest(work, **out, **{**common, **values}),
            "comes": small.guest(
                work, start=50 * MS, migrate_in={"resident": 40 * MIB}, **{**common, **values}
            ),
        },
        host=host(
            400 * MIB, 2, memory=128 * MIB, swap={"device": "nvme", "size": 256 * MIB},
            ksm={"pages_to_scan": 2_000, "sleep": 5 * MS},
        ),
        duration=duration, sample_interval=20 * MS,
    )  # fmt: skip


@pytest.mark.parametrize("limits", [{}, {"memcg": {"max": 32 * MIB}}])
@pytest.mark.parametrize("at", [*range(55, 260, 40), 61, 333])
def test_a_migration_may_be_cut_short_at_any_moment(at: int, limits: dict[str, Any]) -> None:
    """Both guests that migrate are killed: no frame or slot is lost, and others take the turns."""
    made = small.simulation(crowd(**limits))
    free = made.host.free_bytes

    def kill() -> Process:
        yield made.env.timeout(at * MS + 13)
        for guest in made.guests[1:]:
            if guest.alive:
                guest.kill("for the test")
        ledger.audit(made.host)

    made.env.process(kill())
    made.run()
    stays, leaves, comes = made.guests
    assert stays.alive
    assert not leaves.alive
    assert not comes.alive
    assert made.host.swap.used_bytes == stays.swapped_bytes
    assert made.host.migration.turns.count == 0
    ledger.audit(made.host)
    stays.kill(None)
    held = made.host.memory.merged_bytes + made.host.swap.writeback_bytes
    held += len(made.host.ksm.metadata_pages) * PAGE if made.host.ksm else 0
    held += made.host.swap.reading_bytes + made.host.memory.partial_bytes
    assert made.host.free_bytes + held == free


def test_a_crowd_migrates_to_the_end() -> None:
    made = small.simulate(crowd(1_600 * MS))
    assert life(made, 1)["departed_ns"] is not None
    assert life(made, 2)["migrated_in"]["end_ns"] is not None
    assert made.guests[1].failure is None
    assert made.guests[1].merges > 0
    assert made.guests[1].swap_outs > 0
    ledger.audit(made.host)


@pytest.mark.parametrize("victim", ["comes", "leaves"])
def test_the_oom_killer_may_take_a_guest_that_migrates(victim: str) -> None:
    """Without swap the largest goes, in mid-migration, and the other guest lives."""
    work = small.phase(allocate=96 * MIB, accesses=10**9, cycles_per_access=4_000)
    grows = small.phase(
        allocate=64 * MIB, pattern=WRITER, accesses=10**9, cycles_per_access=200_000
    )
    first = (
        {"start": 0, "migrate_in": {"resident": 110 * MIB}} if victim == "comes"
        else {"lifetime": 100 * MS, "migrate_out": {}}
    )  # fmt: skip
    made = small.simulate(small.scenario(
        {victim: vm(work, **first), "other": vm(grows, boot=MIB)},
        host=host(80 * MIB, memory=136 * MIB), duration=3 * S,
    ))  # fmt: skip
    taken, other = made.guests
    assert taken.failure == "killed by the host's OOM killer"
    assert made.host.oom_kills == 1
    assert other.alive
    transfer = life(made)["migrated_in" if victim == "comes" else "migrated_out"]
    assert transfer["end_ns"] is None
    assert 0 < transfer["bytes"] < 112 * MIB
    assert made.host.migration.turns.count == 0
    ledger.audit(made.host)


def test_a_guest_whose_time_is_up_while_it_arrives_is_gone() -> None:
    """It would take a second to come, and may stay for half of one."""
    guest = vm(
        idle(), lifetime=500 * MS, migrate_in={"resident": 80 * MIB}, migrate_out={},
    )  # fmt: skip
    made = small.simulate(small.scenario({"vm": guest}, host=host(80 * MIB), duration=S))
    assert life(made)["departed_ns"] == 500 * MS
    assert life(made)["migrated_in"]["end_ns"] is None
    assert life(made)["migrated_in"]["bytes"] == pytest.approx(40 * MIB, abs=BLOCK)
    assert life(made)["migrated_out"] is None
    ledger.audit(made.host)


# --- parts ------------------------------------------------------------------------------


def test_pages_in_a_row_are_one_range() -> None:
    pages = np.array([1, 2, 3, 7, 9, 10], dtype=np.uint64) * np.uint64(PAGE)
    assert _runs(pages) == [(PAGE, 4 * PAGE), (7 * PAGE, 8 * PAGE), (9 * PAGE, 11 * PAGE)]
    assert _runs(pages[:1]) == [(PAGE, 2 * PAGE)]
