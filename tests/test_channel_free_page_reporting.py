"""Free page reporting, on guests whose passes can be counted by hand.

A guest of 512 MiB is 256 blocks of 2 MiB, all in the zone below 4 GiB. Struct pages (8 MiB) take
blocks 0 to 3. The process's first table breaks block 4, which leaves 5 single; so a region of
64 MiB in huge pages takes 5, then the pairs (6, 7) to (34, 35), then 36. Freed in that order,
(36, 37) is at the head of the list of 125 pairs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import scenarios_small as small
from scenarios_small import BLOCK, GIB, MIB, MS, PAGE, S

from simvm.hardware import load_costs
from simvm.model.kernel_threads import KernelThread
from simvm.model.queues import Process
from simvm.model.timer_wheel import expiry, wait_ns
from simvm.results import RunResult

SEQUENTIAL = {"kind": "sequential", "stride": PAGE}
REPORTING = {"kind": "free_page_reporting"}
TABLES = PAGE  # what the guest keeps: the root of the process's table


def used(size: int = 64 * MIB, **values: Any) -> dict[str, Any]:
    """A phase that touches `size` from end to end and frees it."""
    return small.phase(
        allocate=size, accesses=size // PAGE, pattern=SEQUENTIAL, free="all", **values
    )


def run(
    *phases: dict[str, Any], duration: int = 20 * S, channel: dict[str, Any] | None = None,
    **values: Any,
) -> RunResult:
    """A guest of 512 MiB with the channel, sampled every 16 ms."""
    return small.run(small.scenario(
        {"vm": small.guest(*(phases or [used()]), channel=REPORTING | (channel or {}), **values)},
        duration=duration, sample_interval=16 * MS, quantum=MS,
    ))  # fmt: skip


def drops(made: RunResult) -> list[tuple[int, int]]:
    """(time in ns, bytes) of each fall of what is backed, from one sample to the next."""
    rows = made.timeline.to_pandas()
    rows = rows[rows["scope"] == "guest"]
    series = list(zip(rows["time_ns"].tolist(), rows["backed_bytes"].tolist(), strict=True))
    return [
        (time, before - now)
        for (_, before), (time, now) in pairwise(series)
        if now < before
    ]


# --- the timer --------------------------------------------------------------------------


def test_a_timer_goes_off_at_the_end_of_its_bucket() -> None:
    """Levels begin at 63, 504, 4032 ticks and have grains of 1, 8, 64, 512."""
    assert expiry(0, 62) == 63
    assert expiry(0, 63) == 64
    assert expiry(0, 64) == 72  # on an edge: the next one
    assert expiry(5, 500) == 512
    assert expiry(0, 504) == 512
    assert expiry(0, 511) == 512
    assert expiry(0, 512) == 576
    assert expiry(0, 2000) == 2048
    assert expiry(2048, 2000) == 4096
    assert expiry(2048 + 48, 2000) == 4160


@pytest.mark.parametrize(("hz", "period"), [(100, 2080), (250, 2016), (1000, 2048)])
def test_two_seconds_from_bucket_to_bucket(hz: int, period: int) -> None:
    assert wait_ns(0, 2 * S, hz) == period * MS
    assert wait_ns(period * MS + 5, 2 * S, hz) == period * MS - 5


# --- passes -----------------------------------------------------------------------------


def test_a_pass_reports_its_budget_newest_first() -> None:
    """A block a message, a part in 64: ceil(125 / 64) + 1 = 3 messages a pass.

    The first takes the single block and the pairs (36, 37), of which half was used, and
    (34, 35): 2 + 2 + 4 MiB. 14 pairs are left: four times three, then two.
    """
    made = run(channel={"batch": 1, "budget": 64})
    found = drops(made)
    assert [size // MIB for _, size in found] == [8, 12, 12, 12, 12, 8]
    gaps = {after - before for (before, _), (after, _) in pairwise(found)}
    assert gaps == {2016 * MS}


def test_all_goes_in_one_pass_when_the_budget_allows() -> None:
    """ceil(125 / 512) + 1 = 2 messages of 32: more than what was used."""
    made = run(duration=3 * S)
    assert [size // MIB for _, size in drops(made)] == [64]
    guest = small.one(made)
    assert guest["final"]["backed_bytes"] == 8 * MIB + BLOCK
    assert guest["final"]["stranded_bytes"] == BLOCK - TABLES
    assert guest["totals"]["hint_calls"] == 2


def test_a_pass_costs_its_messages_and_its_blocks() -> None:
    """64 entries in two messages, 32 leaves of 2 MiB in 17 entries, each with a shootdown."""
    costs = load_costs({})
    totals = small.one(run(duration=3 * S))["totals"]
    blocks = 64 * costs.report_block_ns + 32 * costs.zap_2m_ns + 17 * costs.shootdown_base_ns
    assert totals["kernel_thread_ns"] == 2 * costs.report_message_ns + blocks
    assert totals["shootdowns"] == 17
    assert totals["hint_ns"] == 0  # no vCPU pays


def test_what_was_never_backed_is_reported_too_and_then_all_is_quiet() -> None:
    """125 pairs and a single block, two messages a pass: 63 at once, then the other 63."""
    totals = small.one(run(duration=60 * S))["totals"]
    assert totals["hint_calls"] == 4


def test_a_free_asks_for_another_pass_and_only_then() -> None:
    """A second time after 10 s: the next pass is two seconds, and a grain of 32 ms, later."""
    found = drops(run(used(16 * MIB, repeat=2, every=10 * S)))
    assert [size // MIB for _, size in found] == [16, 16]
    assert found[0][0] == pytest.approx(2_032 * MS, abs=16 * MS)
    assert 12 * S < found[1][0] < 12 * S + 64 * MS


def test_a_cache_that_shrinks_asks_for_a_pass() -> None:
    """24 of 32 MiB of files are dropped: 12 blocks go back 20 ms later, though nobody freed.

    All but one at the edge, and one that a piece is read into meanwhile.
    """
    made = small.simulate(small.scenario({"vm": small.guest(
        small.phase(allocate=PAGE, accesses=1), channel=REPORTING | {"delay": 20 * MS},
        page_cache={"files": 32 * MIB, "read_rate": 32 * MIB},
    )}, duration=990 * MS))  # fmt: skip
    guest = made.guests[0]
    calls, backed = guest.hint_calls, guest.backed_bytes
    made.env.run(until=made.env.now + 50 * MS)
    assert (guest.hint_calls, guest.backed_bytes) == (calls, backed)

    def drop() -> Process:
        enough = guest.mm.spare_bytes + 24 * MIB
        yield from guest.mm.reclaim_for(enough, KernelThread(guest))

    made.env.run(until=made.env.process(drop()))
    assert guest.hint_calls == calls
    made.env.run(until=made.env.now + 50 * MS)
    assert guest.hint_calls == calls + 1
    assert 20 * MIB <= backed - guest.backed_bytes <= 24 * MIB


@pytest.mark.parametrize(("factor", "messages"), [(10, 1), (1000, 0)])
def test_a_zone_is_short_by_its_own_watermarks(factor: int, messages: int) -> None:
    """400 MiB held of 502, 102 free. Low is min (2.8 MiB) and a step: a tenth of memory is 51.2,
    and with 64 MiB for a message that is more than there is; by default it is 0.7.
    """
    held = small.phase(
        region="held", allocate=400 * MIB, accesses=400 * MIB // PAGE, pattern=SEQUENTIAL
    )
    made = run(held, duration=10 * S, reclaim={"watermark_scale_factor": factor})
    assert small.one(made)["totals"]["hint_calls"] == messages


def test_order_10_leaves_single_blocks() -> None:
    """Block 5 stays backed, since its other half is broken."""
    final = small.one(run(channel={"order": 10}))["final"]
    assert final["backed_bytes"] == 8 * MIB + 2 * BLOCK
    assert final["stranded_bytes"] == 2 * BLOCK - TABLES


def test_a_zone_short_of_memory_is_passed_over() -> None:
    """440 MiB held of 502: the 62 MiB that are free are less than 32 blocks of 2 MiB."""
    held = small.phase(
        region="held", task="held", allocate=440 * MIB, accesses=440 * MIB // PAGE,
        pattern=SEQUENTIAL,
    )  # fmt: skip
    short = run(held, used(32 * MIB), vcpus=2, duration=10 * S)
    assert drops(short) == []
    assert small.one(short)["totals"]["hint_calls"] == 0
    assert [size // MIB for _, size in drops(run(used(32 * MIB), duration=10 * S))] == [32]


def test_a_shorter_delay_gives_back_sooner() -> None:
    early = drops(run(channel={"delay": 200 * MS}, duration=5 * S))
    late = drops(run(duration=5 * S))
    assert early[0][1] == late[0][1] == 64 * MIB
    assert early[0][0] < 500 * MS < 2 * S <= late[0][0]


def test_reported_memory_is_backed_anew_when_it_is_used_again() -> None:
    """Twice 64 MiB, 10 s apart: 4 faults at boot, 1 for tables, 32 for the region.

    The second time 32 again; without the channel one, since block 37 is used before block 6,
    whose other half the guest took last the first time.
    """
    work = used(repeat=2, every=10 * S)
    with_it = small.one(run(work, duration="work", zeroing="guest"))
    without = small.one(
        run(work, duration="work", zeroing="guest", channel={"kind": "none"})
    )  # fmt: skip
    faults = [guest["totals"]["slat_faults_2m"] for guest in (with_it, without)]
    assert faults == [4 + 1 + 32 + 32, 4 + 1 + 32 + 1]
    # The guest zeroes in both; the host backs and zeroes in one.
    assert with_it["phases"][1]["elapsed_ns"] > 1.5 * without["phases"][1]["elapsed_ns"]


def test_two_zones_have_a_budget_each() -> None:
    """A guest of 4 GiB: 1 GiB above 3 GiB is used first, and 256 MiB below it.

    Passes of two messages of a block in each zone: 16 MiB while both have some, then 8.
    """
    size = GIB + 256 * MIB - 4 * MIB
    made = run(
        used(size, cycles_per_access=400), memory=4 * GIB, duration=12 * S,
        channel={"batch": 1, "budget": 65536, "delay": 20 * MS},
    )  # fmt: skip
    sizes = [fallen // MIB for _, fallen in drops(made)]
    assert size // MIB - 16 <= sum(sizes) <= size // MIB  # the first falls while it still grows
    assert sizes.count(16) >= 25
    first_8 = sizes.index(8)
    assert set(sizes[1 : first_8 - 1]) == {16}
    assert set(sizes[first_8:-1]) == {8}


def test_a_guest_killed_in_the_middle_of_a_pass_ends_cleanly() -> None:
    made = run(channel={"batch": 1, "budget": 64}, stop=5 * S, duration=8 * S)
    assert len(drops(made)) == 3  # two passes, then all at once
    assert small.one(made)["final"]["backed_bytes"] == 0
