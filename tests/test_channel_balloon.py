"""The balloon: what it takes, when, from whom, and what that costs, on guests of 512 MiB.

Costs of the shipped set: 2.28 us to take a page of 4 KiB, 1.63 us to give it back; 158 ns to zap
one, 1 us for a shootdown that nobody has to answer, 31.6 us to split a huge page of the host.
"""

from typing import Any

import pytest
import scenarios_small as small
from scenarios_small import BLOCK, MIB, MS, PAGE

from simvm.hardware import load_costs

COSTS = load_costs()
IDLE = small.phase(allocate=BLOCK, accesses=1)
SEQUENTIAL = {"kind": "sequential", "stride": BLOCK}
FREED = small.phase(pattern=SEQUENTIAL, accesses=32, free="all")
"""64 MiB, all of it touched in pages of 2 MiB, and free again after 12 ms.

The last of its 32 blocks is half of a pair of 4 MiB. Whoever takes the pair that was freed last
gets the other half too, which was never backed, and leaves one block of the 32: 31 go.
"""
GONE = 31
LATER = {50 * MS: 448 * MIB}


def run(*phases: dict[str, Any], duration: int = 400 * MS, **channel: Any) -> dict[str, Any]:
    memory = channel.pop("memory", 512 * MIB)
    result = small.result(
        {"vm": small.guest(*phases, memory=memory, channel={"kind": "balloon", **channel})},
        duration=duration, sample_interval=MS,
    )  # fmt: skip
    vm = small.one(result)
    frame = result.timeline.to_pandas()
    vm["withheld"] = frame[frame["scope"] == "guest"].set_index("time_ns")["withheld_bytes"]
    return vm


def test_untouched_memory_costs_its_messages_alone() -> None:
    """256 MiB are 65,536 pages in 256 messages, of which nothing is backed: 149 ms."""
    vm = run(IDLE, target=256 * MIB)
    assert vm["final"]["withheld_bytes"] == 256 * MIB
    assert vm["totals"]["kernel_thread_ns"] == 65_536 * 2_280
    assert vm["totals"]["hint_calls"] == 256
    assert vm["totals"]["shootdowns"] == vm["totals"]["host_splits"] == 0
    withheld = vm["withheld"]
    assert withheld[withheld == 256 * MIB].index[0] == pytest.approx(65_536 * 2_280, abs=2 * MS)


def test_touched_memory_goes_back_page_by_page() -> None:
    """What was freed last is taken first: 31 huge pages of the host, each split once and then
    dropped in 512 calls, and 2 MiB that were not backed; no frame is left over."""
    vm, without = run(FREED, schedule=LATER), run(FREED, target=512 * MIB)
    assert without["final"]["backed_bytes"] - vm["final"]["backed_bytes"] == GONE * BLOCK
    assert vm["final"]["stranded_bytes"] == without["final"]["stranded_bytes"] - GONE * BLOCK
    pages, totals = 64 * MIB // PAGE, vm["totals"]
    assert totals["host_splits"] == GONE
    assert totals["shootdowns"] == GONE * 512
    assert totals["kernel_thread_ns"] == (
        pages * 2_280
        + GONE * (512 * (COSTS.zap_4k_ns + COSTS.shootdown_base_ns) + COSTS.thp_split_ns)
    )


def test_a_frame_is_held_until_its_last_page_has_gone() -> None:
    """1 MiB of a host page of 2 MiB: no longer backed, and not free either."""
    result = small.result(
        {"vm": small.guest(FREED, channel={"kind": "balloon", "schedule": {50 * MS: 511 * MIB}})},
        duration=100 * MS,
    )  # fmt: skip
    assert small.one(result)["final"]["withheld_bytes"] == MIB
    assert result.summary["host"]["final"]["partial_bytes"] == MIB


def test_pages_of_2m_split_nothing() -> None:
    """32 pages: 6.79 us each; of those backed 5.3 us to zap and 1 us for the shootdown."""
    totals = run(FREED, schedule=LATER, page_size=BLOCK)["totals"]
    assert (totals["host_splits"], totals["shootdowns"], totals["hint_calls"]) == (0, GONE, 1)
    assert totals["kernel_thread_ns"] == 32 * 6_790 + GONE * (5_300 + 1_000)


@pytest.mark.parametrize(("page", "each"), [(PAGE, 2_280 + 1_630), (BLOCK, 6_790 + 5_990)])
def test_a_schedule_takes_and_gives_back(page: int, each: int) -> None:
    """64 MiB leave at 50 ms and come back at 200 ms; the pages are free in the guest again."""
    schedule = {50 * MS: 448 * MIB, 200 * MS: 512 * MIB}
    vm = run(IDLE, schedule=schedule, page_size=page)
    assert vm["withheld"][49 * MS] == 0
    assert vm["withheld"][199 * MS] == 64 * MIB
    assert vm["final"]["withheld_bytes"] == 0
    assert vm["totals"]["kernel_thread_ns"] == 64 * MIB // page * each


def test_what_comes_back_is_backed_again_when_it_is_touched() -> None:
    """The same 64 MiB are touched, freed, taken, given back and touched again: twice the faults."""
    again = small.phase(
        name="again", pattern=SEQUENTIAL, accesses=32, free="all", repeat=2, every=300 * MS,
        allocate=64 * MIB,
    )  # fmt: skip
    schedule = {10 * MS: 256 * MIB, 250 * MS: 512 * MIB}
    faults = [
        run(again, schedule=sizes)["totals"]["slat_faults_2m"]
        for sizes in (schedule, {10 * MS: 512 * MIB})
    ]
    assert faults[0] == faults[1] + GONE


def test_a_worker_that_finds_no_page_looks_again_after_200_ms() -> None:
    """A guest of 128 MiB has some 60 free beside its 64 of data, gone at 65 ms. The data is freed
    at 112 ms, and taken when 200 ms have passed since the worker found nothing."""
    hold = small.phase(name="hold", allocate=None, accesses=100, think_time=MS, free="all")
    touch = small.phase(pattern=SEQUENTIAL, accesses=32)
    vm = run(touch, hold, memory=128 * MIB, schedule={30 * MS: 16 * MIB}, duration=500 * MS)
    withheld = vm["withheld"]
    early = withheld[100 * MS]
    assert 50 * MIB < early < 64 * MIB
    assert withheld[200 * MS] == early
    first, again = (withheld[at].index[0] for at in (withheld == early, withheld > early))
    assert again - first == pytest.approx(200 * MS, abs=3 * MS)
    assert vm["final"]["withheld_bytes"] == 112 * MIB


def out_of_memory(**channel: Any) -> dict[str, Any]:
    """A guest of 128 MiB that is left with 32 and touches 48 MiB at 300 ms."""
    first = small.phase(allocate=BLOCK, accesses=300, think_time=MS)
    late = small.phase(
        region="late", allocate=48 * MIB, accesses=12_288,
        pattern={"kind": "sequential", "stride": PAGE},
    )  # fmt: skip
    return run(first, late, memory=128 * MIB, target=32 * MIB, duration=500 * MS, **channel)


def test_a_guest_out_of_memory_takes_pages_back() -> None:
    """Some 20 MiB, in calls of 256 pages that cost the vCPU 1.63 us a page; nobody takes them
    away again, as the size that the host asks for is no other."""
    vm = out_of_memory()
    assert "failure" not in vm or vm["failure"] is None
    assert vm["withheld"].max() == 96 * MIB
    calls, rest = divmod(96 * MIB - vm["final"]["withheld_bytes"], MIB)
    assert rest == 0
    assert 18 <= calls <= 26
    assert vm["totals"]["hint_ns"] == calls * 256 * 1_630
    assert vm["totals"]["hint_calls"] == 96 + calls


def test_without_deflating_it_dies() -> None:
    vm = out_of_memory(deflate_on_oom=False)
    assert vm["failure"] == "no free memory in the guest"
    assert vm["totals"]["hint_ns"] == 0


def test_free_memory_is_kept_at_a_reserve() -> None:
    """64 MiB stay free, whatever the guest uses: its 32 MiB more come out of the balloon, with
    the 16 page tables that its huge pages deposit and the one above them."""
    first = small.phase(allocate=BLOCK, accesses=400, think_time=MS)
    more = small.phase(region="more", allocate=32 * MIB, pattern=SEQUENTIAL, accesses=16)
    withheld = run(
        first, more, keep_free=64 * MIB, interval=20 * MS, duration=700 * MS
    )["withheld"]  # fmt: skip
    assert 512 * MIB - withheld[399 * MS] - 64 * MIB < 12 * MIB     # struct pages, tables
    assert withheld[399 * MS] - withheld.iloc[-1] == 32 * MIB + 17 * PAGE


def test_a_running_vcpu_is_interrupted_for_each_page() -> None:
    """Of 64 MiB, 62 were backed; the vCPU answers 1 us (nominal) for each of their pages, and
    the worker waits 0.2 us more for it."""
    busy = small.phase(region="busy", allocate=BLOCK, accesses=20_000_000)
    totals = run(FREED, busy, schedule=LATER)["totals"]
    backed = 62 * MIB // PAGE
    assert totals["shootdown_ns"] == backed * COSTS.shootdown_receive_ns
    zap = COSTS.zap_4k_ns + COSTS.shootdown_base_ns + COSTS.shootdown_per_receiver_ns
    assert totals["kernel_thread_ns"] == (
        64 * MIB // PAGE * 2_280 + backed * zap + 31 * COSTS.thp_split_ns
    )
