"""How soon the memory that a guest has freed comes back to the host."""

from __future__ import annotations

from typing import Any

import pytest
import scenarios_small as small
from scenarios_small import BLOCK, GIB, MIB, MS, PAGE, S

from simvm.hardware import load_costs
from simvm.model.returns import Frees, GivenBack, means

COSTS = load_costs()
SEQUENTIAL = {"kind": "sequential", "stride": BLOCK}


def used(size: int, **values: Any) -> dict[str, Any]:
    """A phase that touches every 2 MiB of `size` and frees it."""
    return small.phase(
        allocate=size, accesses=size // BLOCK, pattern=SEQUENTIAL, free="all", **values
    )


def run(*phases: dict[str, Any], duration: int | str = "work", **values: Any) -> dict[str, Any]:
    result = small.result(
        {"vm": small.guest(*phases, **{"memory": 3 * GIB, **values})},
        duration=duration, sample_interval=10 * MS,
    )  # fmt: skip
    guest = small.one(result)
    for key in ("returned_share", "first_gib_back_ns", "last_back_ns"):
        assert guest[key] == result.summary["host"][key]
    return guest


def test_times_count_from_the_free() -> None:
    free = GivenBack(at_ns=100, freed_bytes=3 * GIB)
    free.returned(150, GIB - PAGE)
    assert (free.first_gib_ns, free.last_ns) == (None, 50)
    free.returned(170, PAGE)
    free.returned(300, GIB)
    assert (free.first_gib_ns, free.last_ns, free.returned_bytes) == (70, 200, 2 * GIB)
    frees = Frees()
    assert frees.as_dict() is None
    again = frees.begin(100, 3 * GIB)
    again.returned(170, GIB)
    again.returned(300, GIB)
    frees.begin(300, GIB)
    frees.begin(400, GIB).returned(410, 5 * GIB)
    assert means([frees, Frees()]) == {
        "returned_share": 3 / 5, "first_gib_back_ns": 40, "last_back_ns": 105,
    }  # fmt: skip
    assert frees.as_dict() == {
        "freed_bytes": 5 * GIB, "returned_bytes": 7 * GIB, "first_gib_ns": 40, "last_ns": 105,
    }  # fmt: skip
    assert set(means([Frees()]).values()) == {None}


def test_without_a_channel_nothing_comes_back() -> None:
    guest = run(used(GIB))
    assert guest["phases"][0]["given_back"] == {
        "freed_bytes": GIB, "returned_bytes": 0, "first_gib_ns": None, "last_ns": None,
    }  # fmt: skip
    assert guest["returned_share"] == 0
    assert guest["last_back_ns"] is None


def test_a_phase_that_frees_nothing_has_no_such_figure() -> None:
    guest = run(small.phase(accesses=10))
    assert guest["phases"][0]["given_back"] is None
    assert guest["returned_share"] is None


def test_a_hint_brings_it_all_back_while_the_guest_waits() -> None:
    """1.5 GiB in 768 leaves, each with its zap; what a call and its shootdown cost beside them is
    some microseconds. The first GiB is back at the end of the call that brings it."""
    guest = run(used(3 * GIB // 2), channel={"kind": "passthrough"})
    given = guest["phases"][0]["given_back"]
    assert given["returned_bytes"] == given["freed_bytes"] == 3 * GIB // 2
    zaps = 768 * COSTS.zap_2m_ns
    assert zaps < given["last_ns"] < zaps + 100_000
    assert 512 * COSTS.zap_2m_ns < given["first_gib_ns"] <= given["last_ns"]
    assert guest["returned_share"] == 1


def test_a_container_gives_back_at_once() -> None:
    guest = run(used(GIB), virtualization="none")
    given = guest["phases"][0]["given_back"]
    assert given["returned_bytes"] == GIB
    assert given["last_ns"] == pytest.approx(512 * COSTS.zap_2m_ns, rel=0.01)


def test_a_count_ends_with_the_next_free() -> None:
    """64 MiB wait for a pass after 2 s; 16 MiB freed meanwhile begin a count of their own."""
    guest = run(
        used(64 * MIB, region="a"), used(16 * MIB, region="b"), duration=4 * S,
        channel={"kind": "free_page_reporting"},
    )  # fmt: skip
    first, second = (phase["given_back"] for phase in guest["phases"])
    assert first["returned_bytes"] == 0
    assert second["returned_bytes"] >= 64 * MIB - 2 * BLOCK
    assert guest["returned_share"] == pytest.approx(16 / 80)
    assert 1.9 * S < second["last_ns"] < 2.1 * S
