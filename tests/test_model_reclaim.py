"""When host memory runs short: watermarks, kswapd, direct reclaim, refaults, the OOM killer."""

from __future__ import annotations

from typing import Any

import pytest
import scenarios_small as small
from scenarios_small import BLOCK, GIB, MIB, MS, PAGE, US

from simvm.model import ledger
from simvm.model.engine import Simulation
from simvm.model.policies import ActiveInactive
from simvm.model.queues import Process
from simvm.model.swap import Wait
from simvm.model.swap.nvme import Nvme
from simvm.model.vcpu import VirtualCpu
from simvm.scenario import LruReclaim
from simvm.scenario.models import Scenario

NO_SWAP = {"device": "none"}
NVME = {"device": "nvme", "size": 512 * MIB}


def totals_of(of: Scenario) -> dict[str, int]:
    totals: dict[str, int] = small.run(of).summary["host"]["totals"]
    return totals


# --- watermarks -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "min_kib"),
    [(2 * MIB << 4, 724), (GIB, 4096), (16 * GIB, 16384), (1024 * GIB, 131072)],
)
def test_watermarks_are_those_of_linux(memory: int, min_kib: int) -> None:
    """min_free_kbytes = 4 sqrt(lowmem KiB); low and high by max(min / 4, 0.1 % of memory)."""
    host = small.simulation(small.scenario(host={"memory": memory})).host
    assert host.min_bytes == min_kib << 10
    step = max(host.min_bytes // 4, memory * 10 // 10_000)
    assert (host.low_bytes, host.high_bytes) == (host.min_bytes + step, host.min_bytes + 2 * step)


def test_min_free_and_scale_factor_set_the_watermarks() -> None:
    reclaim = {"min_free": 8 * MIB, "watermark_scale_factor": 500}
    host = small.simulation(small.scenario(host={"memory": GIB, "reclaim": reclaim})).host
    assert host.min_bytes == 8 * MIB
    assert host.low_bytes == 8 * MIB + GIB * 500 // 10_000


def test_min_free_is_bounded() -> None:
    from simvm.model.watermarks import min_free_bytes

    assert min_free_bytes(2 * MIB) == 4 * 45 << 10
    assert min_free_bytes(MIB >> 1) == 128 << 10
    assert min_free_bytes(64 << 40) == 256 * MIB


# --- a host at 150 % --------------------------------------------------------------------


@pytest.fixture(scope="module")
def pressed() -> Simulation:
    return small.simulate(small.pressed())


@pytest.fixture(scope="module")
def unpressed() -> Simulation:
    return small.simulate(small.pressed(memory=512 * MIB))


def test_reclaim_breaks_huge_mappings_and_slows_guests(
    pressed: Simulation, unpressed: Simulation
) -> None:
    few, ample = (small.summary_of(made)["host"] for made in (pressed, unpressed))
    assert ample["totals"]["kswapd_ns"] == ample["totals"]["host_splits"] == 0
    assert ample["totals"]["swap_outs"] == ample["totals"]["refaults"] == 0
    assert ample["final"]["backed_4k_bytes"] == 0
    totals = few["totals"]
    assert totals["kswapd_ns"] > 0
    assert totals["host_splits"] > 0
    assert totals["shootdowns"] > 0
    assert totals["shootdown_ns"] > 0
    assert totals["swap_ins"] > 1_000
    assert 0 < totals["refaults"] <= totals["swap_ins"]
    assert few["final"]["backed_4k_bytes"] > 4 * MIB
    assert few["final"]["backed_2m_bytes"] < 0.7 * ample["final"]["backed_2m_bytes"]
    assert few["loads_per_walk"] > ample["loads_per_walk"] + 0.05
    assert few["slowdown"] > 3 * ample["slowdown"]
    # What was demanded is there or on the device: the work of both was the same.
    held = few["final"]["backed_bytes"] + few["final"]["swapped_bytes"]
    assert held <= ample["final"]["backed_bytes"]
    assert few["final"]["touched_bytes"] == ample["final"]["touched_bytes"]
    assert few["totals"]["accesses"] == ample["totals"]["accesses"]


def test_the_slots_in_use_are_the_pages_swapped(pressed: Simulation) -> None:
    """No slot is kept for a page that came back."""
    final = small.summary_of(pressed)["host"]["final"]
    assert pressed.host.swap.used_bytes == final["swap_used_bytes"] == final["swapped_bytes"] > 0
    totals = small.summary_of(pressed)["host"]["totals"]
    assert (totals["swap_outs"] - totals["swap_ins"]) * PAGE == final["swapped_bytes"]
    ledger.audit(pressed.host)


def test_memory_never_falls_below_the_min_watermark_for_long(pressed: Simulation) -> None:
    """Faults leave min to tables and swap-in; half of it is never used."""
    assert pressed.host.free_bytes > pressed.host.min_bytes // 2
    timeline = small.run(small.pressed(sample_interval=500 * US)).timeline
    assert timeline.host().values("free_bytes").min() > pressed.host.min_bytes // 2


def test_direct_reclaim_is_part_of_a_faults_service() -> None:
    """Without kswapd's lead (low next to min) faults reclaim by themselves, and pay."""
    eager = totals_of(small.pressed(host={"reclaim": {"watermark_scale_factor": 1000}}))
    late = totals_of(small.pressed(host={"reclaim": {"watermark_scale_factor": 1}}))
    assert eager["kswapd_ns"] > 0
    assert late["direct_reclaim_ns"] > eager["direct_reclaim_ns"]
    assert 0 < late["direct_reclaim_ns"] <= late["fault_service_ns"]


def test_swap_latency_is_paid_by_swap_in() -> None:
    """Ten times the latency of the device: nearly ten times the time for a page."""
    means = []
    for latency in (100 * US, 1_000 * US):
        totals = totals_of(small.pressed(
            accesses=4_000, host={"swap": {
                **NVME, "latency": latency, "latency_p99": latency, "parallelism": 128,
            }}
        ))  # fmt: skip
        means.append(totals["swap_in_ns"] / totals["swap_ins"])
    assert means[0] > 100 * US
    assert 6 < means[1] / means[0] < 10


def test_a_page_under_writeback_is_taken_back_without_a_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a slow device some of what is evicted is wanted again before it is written."""
    reads, hits = [], []
    read, take = Nvme.read, Nvme.take_back

    def watched_read(self: Nvme, slot: int) -> Wait:
        reads.append(1)
        return read(self, slot)

    def take_back(self: Nvme, slot: int) -> int | None:
        frame = take(self, slot)
        hits.append(frame is not None)
        return frame

    monkeypatch.setattr(Nvme, "read", watched_read)
    monkeypatch.setattr(Nvme, "take_back", take_back)
    totals = totals_of(small.pressed(
        accesses=3_000, host={"swap": {**NVME, "bandwidth": 64 * MIB}}
    ))  # fmt: skip
    assert sum(hits) > 0
    assert len(reads) > 0
    assert totals["swap_ins"] == sum(hits) + len(reads)


def test_two_threads_that_want_a_page_read_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their hot set moves, and both walk into what was swapped out; the second one waits."""
    waits = []
    swap_in = VirtualCpu.swap_in

    def watched(self: VirtualCpu, address: int) -> Process:
        slot = self.guest.backing.slot_of(address)
        waits.append(slot is not None and slot in self.guest.reads)
        yield from swap_in(self, address)

    monkeypatch.setattr(VirtualCpu, "swap_in", watched)
    moving = {"kind": "drifting", "hot_fraction": 0.0005, "hot_share": 0.999, "drift": 1_000}
    work = small.phase(
        allocate=96 * MIB, threads=2, accesses=40_000, pattern=moving, cycles_per_access=2_000
    )
    totals = totals_of(small.scenario(
        {"vm": small.guest(work, vcpus=2, memory=128 * MIB)},
        host={"memory": 64 * MIB, "swap": NVME},
    ))  # fmt: skip
    assert sum(waits) > 10
    # A page that both wanted came back once.
    assert totals["swap_ins"] <= len(waits) - sum(waits)
    assert totals["swap_ins"] <= totals["swap_outs"]


def hot_and_cold(aging_flush: str) -> Scenario:
    """A small hot set that stays in the TLB beside a cold one that is larger than memory."""
    hot = small.phase(
        name="hot", region="hot", task="hot", allocate=8 * MIB, accesses=200_000,
        pattern={"kind": "sequential", "stride": PAGE}, cycles_per_access=200,
    )  # fmt: skip
    cold = small.phase(
        name="cold", region="cold", task="cold", allocate=160 * MIB, accesses=40 * 1024,
        pattern={"kind": "sequential", "stride": BLOCK + PAGE}, measure=False,
        cycles_per_access=1_000,
    )  # fmt: skip
    return small.scenario(
        {"vm": small.guest(hot, cold, vcpus=2, memory=256 * MIB)},
        host={"memory": 128 * MIB, "swap": NVME, "reclaim": {"aging_flush": aging_flush}},
    )  # fmt: skip


def test_clearing_accessed_bits_without_a_flush_misses_hot_pages() -> None:
    """A translation that stays in the TLB looks idle: its page goes, and comes back."""
    elide, flush = (small.result_of(hot_and_cold(each)) for each in ("elide", "flush"))
    elided, flushed = elide["host"]["totals"], flush["host"]["totals"]
    assert flushed["refaults"] < elided["refaults"]      # what is hot is seen to be
    assert flushed["shootdowns"] > 2 * elided["shootdowns"]
    assert flush["host"]["slowdown"] > elide["host"]["slowdown"]  # and pays for being seen


# --- running out ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "swap"), [("lru", NO_SWAP), ("none", NVME), ("lru", {**NVME, "size": 4 * MIB})],
    ids=["no swap", "no reclaim", "swap full"],
)  # fmt: skip
def test_out_of_memory_is_a_result(policy: str, swap: dict[str, Any]) -> None:
    """Somebody is killed, everybody else gets on, and the host's books are in order."""
    made = small.simulate(small.pressed(
        guests=3, allocate=64 * MIB, accesses=5_000, vmm_overhead=MIB,
        host={"swap": swap, "reclaim": {"policy": policy}, "memory": 192 * MIB},
    ))  # fmt: skip
    summary = small.summary_of(made)
    killed = [guest for guest in summary["guests"] if guest["killed"]]
    lived = [guest for guest in summary["guests"] if not guest["killed"]]
    assert summary["host"]["oom_kills"] == len(killed) == 1
    assert killed[0]["failure"] == "killed by the host's OOM killer"
    assert killed[0]["final"]["backed_bytes"] == killed[0]["final"]["vmm_overhead_bytes"] == 0
    assert killed[0]["peaks"]["backed_bytes"] > 0
    assert killed[0]["totals"]["oom_kills"] == 1
    assert [guest["totals"]["accesses"] for guest in lived] == [5_000] * 2
    (phase,) = killed[0]["phases"]
    assert phase["end_ns"] < summary["scenario"]["simulated_ns"]  # its end is its death
    ledger.balance(made.host)
    ledger.audit(made.host)
    if policy == "none":
        assert summary["host"]["totals"]["folios_scanned"] == 0


def test_the_largest_guest_is_killed() -> None:
    """Resident and swapped memory count; in doubt the older one."""
    big = small.guest(small.phase(allocate=128 * MIB), memory=256 * MIB)
    little = small.guest(small.phase(allocate=32 * MIB), memory=64 * MIB)
    summary = small.result(
        {"little": little, "big": big}, host={"memory": 128 * MIB, "swap": NO_SWAP}
    ).summary
    assert {guest["class"]: guest["killed"] for guest in summary["guests"]} == {
        "little": False, "big": True,
    }  # fmt: skip


def test_a_killed_guest_leaves_nothing_behind_whatever_it_was_doing() -> None:
    """Many moments of death: in a swap-in, in direct reclaim, while it waits for a core."""
    for stop in range(30 * MS, 130 * MS, 10 * MS):
        made = small.simulation(small.pressed(
            accesses=10_000, threads=2, vcpus=2, stop=stop, duration=stop + MS,
            host={"cores": 2, "fault_path": "userfaultfd" if stop % (20 * MS) else "kernel"},
        ))  # fmt: skip
        made.run()
        made.env.run(stop + 200 * MS)
        assert not made.host.guests
        columns = ledger.entries(made.host)
        assert sum(columns.values()) == made.host.settings.memory
        assert columns["free"] == small.simulation(small.pressed()).host.free_bytes
        assert made.host.swap.used_bytes == 0
        for _ in range(2):  # both cores are free again
            assert list(made.host.cores.acquire()) == []


def test_a_guest_that_starts_on_a_full_host_makes_room_for_its_vmm() -> None:
    """There is swap: nobody is killed, nobody fails to start."""
    summary = small.run(small.pressed(
        accesses=4_000, vmm_overhead=16 * MIB, stagger=60 * MS, guests=3, allocate=64 * MIB
    )).summary  # fmt: skip
    assert summary["host"]["oom_kills"] == 0
    assert [guest["totals"]["accesses"] for guest in summary["guests"]] == [4_000] * 3
    assert summary["host"]["totals"]["swap_outs"] > 0


def test_a_min_watermark_of_one_page_leaves_room_for_tables() -> None:
    """Direct reclaim must make more room than a fault asks for, or it would never end."""
    summary = small.run(small.pressed(
        accesses=2_000, vmm_overhead=2 * MIB,
        host={"reclaim": {"min_free": PAGE, "watermark_scale_factor": 1}},
    )).summary  # fmt: skip
    assert summary["host"]["oom_kills"] == 0
    assert summary["host"]["totals"]["direct_reclaim_ns"] > 0


def test_huge_folios_are_split_when_no_slots_lie_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is swap, if only page by page: splitting is progress, and no reason to give up."""
    made = small.simulate(small.scenario(
        {"vm": small.guest(small.phase(allocate=128 * MIB))}, host={"memory": GIB, "swap": NVME}
    ))  # fmt: skip
    host = made.host
    single = host.swap.slot_for
    monkeypatch.setattr(host.swap, "slot_for", lambda order: None if order else single(0))
    host.memory.scan(ActiveInactive.INACTIVE, 1 << 20)  # all 68 huge folios are idle now
    host.min_bytes = host.free_bytes + MIB
    reclaim = made.env.process(host.reclaimer.direct(made.guests[0].vcpus[0]))
    assert made.env.run(reclaim) is True
    assert host.free_bytes > host.min_bytes
    assert made.guests[0].host_splits > 16
    assert made.guests[0].swap_outs > 256
    ledger.audit(host)


def test_partly_unmapped_blocks_are_the_first_to_go() -> None:
    """What 4 KiB hints left behind costs nobody anything but the split."""
    free = small.phase(
        region="a", allocate=64 * MIB, accesses=16_384, free=31 * MIB,
        pattern={"kind": "sequential", "stride": PAGE},
    )  # fmt: skip
    made = small.simulate(small.scenario({"vm": small.guest(
        free, page_size=PAGE, channel={"kind": "passthrough"},
    )}))  # fmt: skip
    partial = made.host.memory.partial_bytes
    assert partial > 0
    before = made.host.free_bytes
    made.host.reclaimer.shrink()
    assert made.host.memory.partial_bytes == 0
    assert made.host.free_bytes == before + partial
    ledger.audit(made.host)


# --- visibility -------------------------------------------------------------------------


def test_an_invalidation_during_an_interruption_is_applied_at_the_next_entry() -> None:
    made = small.simulation(small.scenario())
    made.guests[0].life.begin()
    vcpu = made.guests[0].vcpus[0]
    list(vcpu.enter_core())
    list(vcpu.catch_up())
    vcpu.kick()
    entering = vcpu.catch_up()
    next(entering)                 # the vCPU pays for the interruption
    made.guests[0].invalidate(0, PAGE)      # and something else changes meanwhile
    assert vcpu._mmu._pending
    made.guests[0].host.env.step()
    assert list(entering) == []
    assert not vcpu._mmu._pending


@pytest.mark.long
def test_results_converge_as_the_quantum_shrinks(full_size: bool) -> None:
    """20, 5 and 1 us: slowdown and swap-ins within 10 % of the shortest, 3 % at 5 us."""
    accesses = 40_000 if full_size else 10_000
    found = []
    for quantum in (20 * US, 5 * US, 1 * US):
        host = small.run(small.pressed(accesses=accesses, quantum=quantum)).summary["host"]
        found.append((host["slowdown"], host["totals"]["swap_ins"]))
    for (slowdown, swap_ins), band in zip(found, (0.10, 0.03), strict=False):
        assert slowdown == pytest.approx(found[-1][0], rel=band)
        assert swap_ins == pytest.approx(found[-1][1], rel=band)


# --- the policy -------------------------------------------------------------------------


class Lists:
    """Folios 1, 2, ... on two lists, as the policy sees them; some were accessed."""

    def __init__(self, active: list[int], inactive: list[int], young: set[int]) -> None:
        self.lists = {ActiveInactive.ACTIVE: active, ActiveInactive.INACTIVE: inactive}
        self.young = young

    def list_bytes(self, which: int) -> int:
        return len(self.lists[which]) * PAGE

    def scan(self, which: int, pages: int) -> list[tuple[int, bool]]:
        return [(folio, folio in self.young) for folio in self.lists[which][:pages]]


def choose(active: list[int], inactive: list[int], young: set[int]) -> Any:
    return ActiveInactive(LruReclaim()).choose(Lists(active, inactive, young))  # type: ignore[arg-type]


def test_idle_folios_are_evicted_and_accessed_ones_activated() -> None:
    decision = choose([], [1, 2, 3, 4], {2, 3})
    assert decision.evict == [1, 4]
    assert decision.moves == [(ActiveInactive.ACTIVE, [2, 3])]
    assert decision.young == [2, 3]
    assert decision.scanned == 4


def test_the_active_list_gives_up_its_oldest_while_the_inactive_one_is_small() -> None:
    decision = choose([1, 2, 3], [4], {1})
    assert decision.moves[0] == (ActiveInactive.INACTIVE, [1, 2, 3])  # accessed or not
    assert decision.evict == [4]
    assert decision.scanned == 4
    level = choose([1, 2], [3, 4], set())
    assert level.moves == [(ActiveInactive.ACTIVE, [])]


def test_a_batch_is_32_pages() -> None:
    decision = choose([], list(range(100)), set())
    assert decision.evict == list(range(32))
