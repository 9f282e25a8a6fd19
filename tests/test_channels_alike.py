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
