"""What `scenarios/give_back.toml` shows."""

from __future__ import annotations

from typing import Any

import pytest
from scenario_runs import scenario_runs

GIB, MS, S = 1 << 30, 1_000_000, 1_000_000_000
CHANNELS = ("passthrough", "free_page_reporting", "shared_allocator", "balloon", "virtio_mem")
ALL_BACK = CHANNELS[:3]


@pytest.fixture(scope="module")
def guests() -> dict[str, dict[str, Any]]:
    runs = scenario_runs()
    return {
        name: runs.summary("give_back", name)["guests"][0]
        for name in runs.comparison("give_back")
    }


def test_nothing_comes_back_without_a_channel(guests: dict[str, dict[str, Any]]) -> None:
    assert set(guests) == {"base", *CHANNELS}
    assert guests["base"]["returned_share"] == 0
    assert guests["base"]["final"]["stranded_bytes"] > 4 * GIB


def test_the_first_gib_comes_back_in_this_order(guests: dict[str, dict[str, Any]]) -> None:
    first = {name: guests[name]["first_gib_back_ns"] for name in CHANNELS}
    assert first["passthrough"] < 10 * MS
    # An agent that looks every second finds it after half a second, give or take half.
    for name in ("shared_allocator", "virtio_mem"):
        assert 10 * MS < first[name] < S
    assert max(first["shared_allocator"], first["virtio_mem"]) < first["balloon"] < 3 * S
    assert 2 * S < first["free_page_reporting"] < 8 * S


def test_the_last_comes_back_in_this_order(guests: dict[str, dict[str, Any]]) -> None:
    """4 GiB of two zones: 1 to 1.5 GiB of a list of five messages a pass, the rest of three."""
    last = {name: guests[name]["last_back_ns"] for name in CHANNELS}
    assert last["passthrough"] < 50 * MS < last["shared_allocator"] < S
    assert last["virtio_mem"] < last["balloon"] < 4 * S
    assert 12 * S < last["free_page_reporting"] < 22 * S
    for name in CHANNELS:
        share = guests[name]["returned_share"]
        assert share == 1 if name in ALL_BACK else 0.2 < share < 0.8, name


def test_what_came_back_is_backed_anew(guests: dict[str, dict[str, Any]]) -> None:
    """4 GiB of the second burst are 2048 faults, about 0.35 ms each."""
    faults = {name: guest["totals"]["slat_faults"] for name, guest in guests.items()}
    stall = {name: guest["totals"]["fault_stall_ns"] for name, guest in guests.items()}
    for name in ALL_BACK:
        assert 2_000 <= faults[name] - faults["base"] <= 2_100
        assert 2_000 * 300_000 < stall[name] - stall["base"] < 2_100 * 400_000


def test_who_pays(guests: dict[str, dict[str, Any]]) -> None:
    """A hint is on the vCPU's time; the others are threads beside it."""
    totals = {name: guest["totals"] for name, guest in guests.items()}
    for name in CHANNELS:
        of_vcpus, beside = totals[name]["hint_ns"], totals[name]["kernel_thread_ns"]
        assert (of_vcpus > 0, beside > 0) == (
            (True, False) if name == "passthrough" else (False, True)
        )
    # Pages of 4 KiB cost a shootdown each, and the host's huge pages.
    for name in ("free_page_reporting", "shared_allocator", "virtio_mem"):
        assert totals["balloon"]["kernel_thread_ns"] > 10 * totals[name]["kernel_thread_ns"]
        assert totals[name]["host_splits"] == 0
    assert totals["balloon"]["host_splits"] > 1000
    assert guests["balloon"]["slowdown"] > 1.01 > guests["passthrough"]["slowdown"]
