"""What holds of every channel that sizes a guest: the same bytes again, and no ns that is lost."""

from typing import Any

import pytest
import scenarios_small as small
from scenarios_small import BLOCK, MIB, MS, PAGE

from simvm.model import ledger

SIZED: dict[str, dict[str, Any]] = {
    "balloon": {},
    "balloon, 2 MiB": {"kind": "balloon", "page_size": BLOCK},
    "virtio_mem": {"unmovable": 0.2},
    "shared_allocator": {"automatic": True, "interval": 30 * MS},
}
SCHEDULE = {20 * MS: 96 * MIB, 120 * MS: 256 * MIB, 160 * MS: 128 * MIB}


def busy(name: str, **host: Any) -> Any:
    """Two guests that allocate, write and free while the host sizes them up and down."""
    channel = {"kind": name, **SIZED[name], "schedule": SCHEDULE}
    work = small.phase(
        allocate=48 * MIB, accesses=20_000, write_fraction=0.5, free="all", repeat=3,
        every=60 * MS, threads=2, cycles_per_access=2000,
    )  # fmt: skip
    return small.scenario(
        {"vm": small.guest(work, count=2, vcpus=2, memory=256 * MIB, channel=channel,
                           page_size=PAGE, zeroing="guest")},
        host=host, duration=250 * MS, seed=3,
    )  # fmt: skip


@pytest.mark.parametrize("name", SIZED)
def test_the_same_seed_gives_the_same_run(name: str) -> None:
    """What each takes differs, and every ns of every vCPU has a cause (a run checks that)."""
    one, other = (small.result_of(busy(name)) for _ in range(2))
    assert one == other
    assert one["host"]["peaks"]["withheld_bytes"] > 200 * MIB
    assert one["host"]["totals"]["kernel_thread_ns"] > 0


@pytest.mark.parametrize("name", SIZED)
def test_no_frame_is_lost_when_host_memory_is_short(name: str) -> None:
    """A host of 88 MiB swaps while it takes memory back: pages under way to the device are
    unplugged, split frames are held, and at the end all adds up, frame by frame."""
    made = small.simulate(busy(
        name, memory=88 * MIB, swap={"device": "nvme", "size": 512 * MIB}
    ))  # fmt: skip
    totals = small.summary_of(made)["host"]["totals"]
    assert totals["swap_outs"] > 0
    ledger.balance(made.host)
    ledger.audit(made.host)
    for guest in made.guests:
        assert guest.memory.recount() == guest.memory.free_bytes


@pytest.mark.parametrize("virtualization", ["nested", "shadow"])
def test_a_guest_without_a_page_for_a_table_dies_once(virtualization: str) -> None:
    """The host takes all that is free before the first process starts. Neither task can have a
    page table; the first one to find out ends the guest for both."""
    tasks = [small.phase(region=name, task=name, process=name) for name in ("one", "other")]
    channel: dict[str, Any] = {
        "kind": "balloon", "page_size": BLOCK, "target": PAGE, "deflate_on_oom": False,
    }  # fmt: skip
    guest = small.one(small.result(
        {"vm": small.guest(*tasks, vcpus=2, memory=64 * MIB, channel=channel,
                           virtualization=virtualization)},
        duration=50 * MS,
    ))  # fmt: skip
    assert guest["failure"] == "no free memory in the guest"
    assert guest["final"]["backed_bytes"] == 0


@pytest.mark.parametrize("deflate", [True, False])
def test_a_process_that_finds_no_page_for_its_table_gets_one_from_the_balloon(
    deflate: bool,
) -> None:
    """All but the first process's memory is taken by 20 ms; the second begins at 50 ms."""
    first = small.phase(region="first", allocate=BLOCK, accesses=50, think_time=MS)
    later = small.phase(region="later", process="later", allocate=BLOCK)
    channel = {
        "kind": "balloon", "page_size": BLOCK, "schedule": {10 * MS: PAGE},
        "deflate_on_oom": deflate,
    }  # fmt: skip
    guest = small.one(small.result(
        {"vm": small.guest(first, later, memory=64 * MIB, channel=channel)}, duration=100 * MS
    ))  # fmt: skip
    assert (guest["failure"] is None) == deflate
    assert (guest["totals"]["hint_ns"] > 0) == deflate
