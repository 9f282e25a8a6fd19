"""Channels that size a guest whose kernel has memory to give: its page cache, and swap.

Guests of 512 MiB have 504 beside their struct pages; those of 256 MiB have 252. `min_free` is
as Linux computes it: 4 x sqrt(524288) = 2896 KiB, and 4 x sqrt(262144) = 2 MiB.
"""

from __future__ import annotations

from typing import Any

import pytest
import scenarios_small as small
from scenarios_small import BLOCK, GIB, KIB, MIB, MS, PAGE, US

from simvm.model.guest import Guest

IN_ORDER = {"kind": "sequential", "stride": PAGE}
SWAP = {
    "device": "nvme", "size": 256 * MIB, "latency": 10 * US, "latency_p99": 10 * US,
}  # fmt: skip
IDLE = small.phase(allocate=PAGE, accesses=1)


def guest_of(
    *phases: dict[str, Any], duration: int = 500 * MS, **values: Any
) -> tuple[Guest, dict[str, Any]]:
    """The only guest at the end of a run, and its part of the summary."""
    made = small.simulate(small.scenario(
        {"vm": small.guest(*(phases or [IDLE]), **values)}, duration=duration,
    ))  # fmt: skip
    return made.guests[0], small.summary_of(made)["guests"][0]


def files(size: int, rate: int = 2 * GIB) -> dict[str, Any]:
    """Files on a fast disk."""
    return {"files": size, "read_rate": rate, "bandwidth": 8 * GIB, "latency": US}


# --- page cache -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [448, 256])
def test_a_balloon_takes_what_is_free_and_then_the_cache(size: int) -> None:
    """400 MiB of files leave 504 - 400 = 104, less a block of the program: 64 MiB more fit in it.

    256 MiB do not: then 504 - 256 = 248 are left for the cache, the program's block and what
    reclaim leaves free, which is between min and high (2.9 and 4.3 MiB) and a piece of a file.
    """
    guest, made = guest_of(
        page_cache=files(400 * MIB), channel={"kind": "balloon", "schedule": {250 * MS: size * MIB}}
    )
    final = made["final"]
    assert final["withheld_bytes"] == (512 - size) * MIB
    if size == 448:
        assert made["totals"]["cache_drops"] == 0
        assert final["page_cache_bytes"] == 400 * MIB
    else:
        left = 248 * MIB - final["page_cache_bytes"] - BLOCK
        marks = guest.mm.watermarks
        assert marks.min_bytes <= left <= marks.high_bytes + 512 * KIB
        assert made["totals"]["cache_drops"] * PAGE >= 400 * MIB - final["page_cache_bytes"]


LOW = small.phase(
    region="low", allocate=240 * MIB, accesses=120, pattern={"kind": "sequential", "stride": BLOCK}
)
WAIT = small.phase(region="low", allocate=None, name="wait", accesses=1, free="all")


def unplugged(cache: int, size: int, rate: int = 200 * MIB) -> dict[str, Any]:
    """A program holds the low 240 MiB until 600 ms, while a cache fills up above it."""
    channel = {"kind": "virtio_mem", "schedule": {700 * MS: size * MIB}}
    return guest_of(
        LOW, {**WAIT, "think_time": 550 * MS}, page_cache=files(cache * MIB, rate),
        channel=channel, duration=900 * MS,
    )[1]  # fmt: skip


def test_an_unplug_moves_the_cache_when_there_is_room() -> None:
    """100 MiB from 8 + 2 + 240 MiB on, after struct pages, tables and the program.

    All but what lies below 256 MiB moves for 3.16 us a page, and is copied at 10 GB/s or so,
    another 0.41 us. What was read before the program had its 240 MiB may lie lower still.
    """
    made, before = unplugged(100, 256), unplugged(100, 512)
    assert made["final"]["withheld_bytes"] == 256 * MIB
    assert made["final"]["page_cache_bytes"] == 100 * MIB
    assert made["totals"]["cache_drops"] == before["totals"]["pages_moved"] == 0
    moved = made["totals"]["pages_moved"]
    assert 80 * MIB <= moved * PAGE <= 94 * MIB
    cost = made["totals"]["kernel_thread_ns"] - before["totals"]["kernel_thread_ns"]
    assert cost == pytest.approx(128 * 46_200 + moved * (3_160 + 410), rel=0.05)


def test_an_unplug_drops_cache_when_there_is_none() -> None:
    """Files of 400 MiB: of 504 - 256 = 248 the cache keeps all but what reclaim leaves free."""
    final = unplugged(400, 256, GIB)["final"]
    assert final["withheld_bytes"] == 256 * MIB
    assert 248 * MIB - 6 * MIB <= final["page_cache_bytes"] <= 248 * MIB


# --- swap -------------------------------------------------------------------------------


HELD = small.phase(allocate=160 * MIB, accesses=160 * MIB // PAGE, pattern=IN_ORDER)
IDLING = small.phase(name="wait", allocate=None, accesses=1, pattern=IN_ORDER, think_time=900 * MS)
TABLES = 83 * PAGE     # 80 of 2 MiB each, and three above them


def sized(kind: str, size: int, swap: dict[str, Any]) -> dict[str, Any]:
    """A guest of 256 MiB that holds 160 in small pages: 252 - 160 are free, less its tables."""
    channel = {"kind": kind, "schedule": {250 * MS: size * MIB}}
    return guest_of(
        HELD, IDLING, memory=256 * MIB, page_size=PAGE, reclaim={}, swap=swap, channel=channel,
        duration=900 * MS,
    )[1]  # fmt: skip


def test_a_balloon_swaps_out_what_it_lacks() -> None:
    """128 MiB and the min watermark of 2 MiB, less 92 MiB that are free: 38 go to swap."""
    made = sized("balloon", 128, SWAP)
    assert made["final"]["withheld_bytes"] == 128 * MIB
    lacking = 130 * MIB - (92 * MIB - TABLES)
    assert lacking <= made["final"]["guest_swapped_bytes"] < lacking + 64 * PAGE
    assert sized("balloon", 192, SWAP)["totals"]["guest_swap_outs"] == 0


def test_a_balloon_without_swap_ends_at_the_min_watermark() -> None:
    made = sized("balloon", 128, {"device": "none"})
    assert made["final"]["withheld_bytes"] == 92 * MIB - TABLES - 2 * MIB


def test_an_unplug_swaps_out_what_it_lacks() -> None:
    """As a balloon of that size; without swap whole device blocks of what is free go, no more."""
    made, without = (sized("virtio_mem", 128, swap) for swap in (SWAP, {"device": "none"}))
    assert made["final"]["withheld_bytes"] == 128 * MIB
    lacking = 128 * MIB - (92 * MIB - TABLES)
    assert lacking <= made["final"]["guest_swapped_bytes"] <= lacking + 3 * MIB
    assert 88 * MIB <= without["final"]["withheld_bytes"] <= 92 * MIB - TABLES
    assert without["final"]["guest_swapped_bytes"] == 0
