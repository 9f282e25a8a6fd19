"""virtio-mem: what it unplugs and what stays, and the moving of pages that makes room.

Costs of the shipped set: 46.2 us to unplug 2 MiB, 19.2 us to plug them; 5.3 us to zap a huge page
of the host and 1 us for a shootdown that nobody has to answer; 3.16 us to move a page, and the
copy at 10 GB/s or so.
"""

from typing import Any

import numpy as np
import pytest
import scenarios_small as small
from scenarios_small import BLOCK, MIB, MS, PAGE, S

from simvm import _core
from simvm.hardware import load_costs, load_cpu

COSTS = load_costs()
IDLE = small.phase(allocate=BLOCK, accesses=1)
SEQUENTIAL = {"kind": "sequential", "stride": BLOCK}
PAGES = {"kind": "sequential", "stride": PAGE}


def run(*phases: dict[str, Any], duration: int = 200 * MS, **values: Any) -> dict[str, Any]:
    """A guest of 512 MiB, and what became of it."""
    keys = {key: values.pop(key) for key in ("page_size", "virtualization") if key in values}
    meta = {"sample_interval": duration // 200} if duration > S else {}
    result = small.result(
        {"vm": small.guest(*phases, channel={"kind": "virtio_mem", **values}, **keys)},
        duration=duration, **meta,
    )  # fmt: skip
    vm = small.one(result)
    frame = result.timeline.to_pandas()
    vm["withheld"] = frame[frame["scope"] == "guest"].set_index("time_ns")["withheld_bytes"]
    return vm


# --- vacating -----------------------------------------------------------------------------


def test_blocks_are_taken_where_they_lie() -> None:
    memory = _core.BlockAllocator(64 * MIB)
    assert memory.free_blocks_from(8 * MIB, 2) == [8 * MIB, 10 * MIB]
    assert memory.vacate(8 * MIB, 4 * MIB, []) == ([8 * MIB, 10 * MIB], ([], []))
    assert memory.free_bytes == memory.recount() == 60 * MIB
    assert memory.free_blocks_from(6 * MIB, 2) == [6 * MIB, 12 * MIB]
    memory.free_2m(8 * MIB)
    memory.free_2m(10 * MIB)
    assert memory.free_bytes == memory.recount() == 64 * MIB


@pytest.mark.parametrize("seed", range(20))
def test_every_leaf_keeps_a_page_of_its_own(seed: int) -> None:
    """Pages of both sizes, mapped at random in 64 MiB, and pages that nobody maps. Vacating the
    upper half moves the mapped ones, leaves the others, and loses none."""
    random = np.random.default_rng(seed)
    memory = _core.BlockAllocator(64 * MIB)
    table = _core.PageTable(4, memory)
    mapped, stuck = {}, []
    for number in range(400):
        chance = random.random()
        if chance < 0.02:
            table.map(number << 21, memory.allocate_2m(), 1)
            mapped[number << 21] = 1
        elif chance < 0.95:
            table.map(number << 21, memory.allocate_4k(), 0)
            mapped[number << 21] = 0
        elif chance < 0.97:
            stuck.append(memory.allocate_4k())
    before = {address: table.lookup(address) for address in mapped}
    free = memory.free_bytes
    done, moved = memory.vacate(32 * MIB, 32 * MIB, [table])
    assert memory.free_bytes == memory.recount() == free - len(done) * BLOCK
    after = {address: table.lookup(address) for address in mapped}
    pages: set[int] = set()
    for address, order in mapped.items():
        leaf = after[address]
        assert leaf is not None
        assert leaf.order == order
        taken = set(range(leaf.target, leaf.target + (PAGE << 9 * order), PAGE))
        assert not taken & pages
        pages |= taken
        assert not any(block <= leaf.target < block + BLOCK for block in done)
    changed = sum(before[address] != after[address] for address in mapped)
    assert changed == sum(map(len, moved))
    at = {leaf.target for leaf in after.values() if leaf is not None}
    assert at >= {*moved[0], *moved[1]}
    assert not pages & set(stuck)
    assert not any(block <= page < block + BLOCK for block in done for page in stuck)


# --- the channel ----------------------------------------------------------------------------


def test_free_memory_is_unplugged_for_its_price() -> None:
    """256 MiB are 128 device blocks, of which nothing is backed: 5.9 ms."""
    vm = run(IDLE, target=256 * MIB)
    assert vm["final"]["withheld_bytes"] == 256 * MIB
    assert vm["totals"]["kernel_thread_ns"] == 128 * 46_200
    assert vm["totals"]["shootdowns"] == vm["totals"]["pages_moved"] == 0
    assert vm["totals"]["hint_calls"] == 2      # two blocks of Linux


def test_backed_memory_is_dropped_block_by_block() -> None:
    """The 32 blocks that were touched and freed lie above 10 MiB, after struct pages and tables:
    with 12 MiB left, 31 of them are dropped, each with its zap and its shootdown."""
    work = small.phase(pattern=SEQUENTIAL, accesses=32, free="all")
    vm, without = run(work, schedule={50 * MS: 12 * MIB}), run(work, target=512 * MIB)
    assert vm["final"]["withheld_bytes"] == 500 * MIB
    assert without["final"]["backed_bytes"] - vm["final"]["backed_bytes"] == 62 * MIB
    assert vm["totals"]["host_splits"] == 0
    assert vm["totals"]["kernel_thread_ns"] == (
        250 * 46_200 + 31 * (5_300 + COSTS.shootdown_base_ns)
    )


def test_what_was_unplugged_last_comes_back_for_its_price() -> None:
    """64 MiB leave, and come back at 100 ms: 32 blocks at 46.2 us and at 19.2 us."""
    vm = run(IDLE, schedule={50 * MS: 448 * MIB, 100 * MS: 512 * MIB})
    assert vm["withheld"][90 * MS] == 64 * MIB
    assert vm["final"]["withheld_bytes"] == 0
    assert vm["totals"]["kernel_thread_ns"] == 32 * (46_200 + 19_200)


@pytest.mark.parametrize("virtualization", ["nested", "shadow"])
@pytest.mark.parametrize("page", [PAGE, BLOCK])
def test_data_moves_out_of_the_way(page: int, virtualization: str) -> None:
    """Blocks in the order of their use: 4 of struct pages, 1 of page tables, 150 that are freed, 50
    of data, of which 13 lie above 384 MiB. They move below, once, to where the host
    has backed memory already; then the guest reads all of its data."""
    low = {"region": "low", "pattern": PAGES, "accesses": 300 * MIB // PAGE}
    vm = run(
        small.phase(allocate=300 * MIB, **low),
        small.phase(allocate=100 * MIB, pattern=PAGES, accesses=100 * MIB // PAGE),
        small.phase(region="low", name="free", allocate=None, pattern=None, accesses=None,
                    free="all"),
        small.phase(name="wait", allocate=None, accesses=1, think_time=1000 * MS),
        small.phase(name="again", allocate=None, pattern=PAGES, accesses=100 * MIB // PAGE),
        schedule={1000 * MS: 384 * MIB}, duration=2500 * MS, page_size=page,
        virtualization=virtualization,
    )  # fmt: skip
    assert vm["final"]["withheld_bytes"] == 128 * MIB
    assert vm["totals"]["pages_moved"] == 13 * 512
    bandwidth = load_cpu("sapphire_rapids").zeroing_bytes_per_s
    copies = 26 * MIB * 1_000_000_000 // bandwidth + 26 * MIB // page * COSTS.page_migration_ns
    zaps = 13 * (5_300 + COSTS.shootdown_base_ns)
    traps = 26 * MIB // page * COSTS.page_table_write_ns if virtualization == "shadow" else 0
    assert vm["totals"]["kernel_thread_ns"] == 64 * 46_200 + copies + zaps + traps
    (region,) = vm["regions"]
    assert region["touched_bytes"] == 100 * MIB
    assert region["backed_2m_bytes"] + region["backed_4k_bytes"] == 100 * MIB


def test_unmovable_pages_keep_their_blocks() -> None:
    """A page of the kernel in half of the 256 device blocks: about half of them stay, however
    little the guest uses."""
    halves = run(IDLE, target=16 * MIB, unmovable=0.5)
    left = halves["final"]["withheld_bytes"]
    assert 200 * MIB < left < 300 * MIB
    assert halves["withheld"].max() == left
    none = run(IDLE, target=16 * MIB, unmovable=1.0)
    assert none["final"]["withheld_bytes"] == 0


def test_what_is_missing_is_tried_again_after_50_then_100_seconds() -> None:
    """448 MiB are in use until 80 s. Tries at 0, 50 and 150 s: the last one finds them free."""
    hold = small.phase(
        allocate=448 * MIB, pattern=SEQUENTIAL, accesses=224, think_time=2 * MS,
    )  # fmt: skip
    wait = small.phase(name="wait", allocate=None, accesses=80, think_time=S, free="all")
    vm = run(hold, wait, schedule={S: 256 * MIB}, duration=200 * S)
    withheld = vm["withheld"]
    assert withheld[150 * S] < 60 * MIB
    assert withheld[152 * S] == 256 * MIB


def test_large_device_blocks_need_all_of_their_memory() -> None:
    """A guest of 512 MiB that holds its lowest 8 MiB: three blocks of 128 MiB, not the fourth."""
    vm = run(IDLE, target=2 * MIB, block_size=128 * MIB)
    assert vm["final"]["withheld_bytes"] == 384 * MIB


# --- memory above `memory` --------------------------------------------------------------------


def hotplug(*phases: dict[str, Any], duration: int = 300 * MS, **channel: Any) -> Any:
    """A guest of 256 MiB that can have 512."""
    return small.simulate(small.scenario(
        {"vm": small.guest(*phases, memory=256 * MIB, memory_max=512 * MIB,
                           channel={"kind": "virtio_mem", **channel})},
        duration=duration,
    ))  # fmt: skip


def totals_of(made: Any) -> dict[str, int]:
    totals: dict[str, int] = small.summary_of(made)["guests"][0]["totals"]
    return totals


def test_memory_is_plugged_from_where_the_guest_ends() -> None:
    """256 MiB are unplugged at boot. Plugging them takes 128 x 19.2 us, and 2 MiB of struct pages
    for each of two blocks of Linux, which the host backs as the guest writes them."""
    made, without = hotplug(IDLE, target=512 * MIB), hotplug(IDLE, target=256 * MIB)
    assert without.guests[0].channel.withheld_bytes == 256 * MIB
    assert totals_of(without)["kernel_thread_ns"] == 0
    assert made.guests[0].channel.withheld_bytes == 0
    fault = made.host.fault_ns[1]
    assert totals_of(made)["kernel_thread_ns"] == 128 * 19_200 + 2 * fault
    backed = [each.guests[0].backed_bytes for each in (made, without)]
    assert backed[0] - backed[1] == 2 * BLOCK
    more = made.guests[0].memory.free_bytes - without.guests[0].memory.free_bytes
    assert more == 256 * MIB - 2 * BLOCK


@pytest.mark.parametrize(("size", "failure"), [(512, None), (256, "no free memory in the guest")])
def test_a_program_may_use_what_was_plugged(size: int, failure: str | None) -> None:
    """300 MiB, every page of it: more than the guest has at boot."""
    wait = small.phase(region="small", allocate=BLOCK, accesses=50, think_time=MS)
    work = small.phase(allocate=300 * MIB, pattern=PAGES, accesses=300 * MIB // PAGE)
    guest = small.summary_of(hotplug(wait, work, target=size * MIB))["guests"][0]
    assert guest["failure"] == failure
    assert (guest["peaks"]["touched_bytes"] > 300 * MIB) == (failure is None)


def test_struct_pages_go_with_the_last_device_block() -> None:
    """As much is free as before, and half a block of Linux keeps them."""
    before = hotplug(IDLE, target=256 * MIB).guests[0].memory.free_bytes
    gone = hotplug(IDLE, schedule={50 * MS: 512 * MIB, 100 * MS: 256 * MIB}).guests[0]
    assert gone.channel.withheld_bytes == 256 * MIB
    assert gone.memory.free_bytes == before
    half = hotplug(IDLE, schedule={50 * MS: 512 * MIB, 100 * MS: 320 * MIB}).guests[0]
    assert half.memory.free_bytes == before + 64 * MIB - BLOCK


def test_a_size_asked_for_during_an_unplug_is_not_lost() -> None:
    """5.9 ms to unplug 256 MiB; after 1 ms the host wants them back."""
    vm = run(IDLE, schedule={50 * MS: 256 * MIB, 51 * MS: 512 * MIB})
    assert vm["final"]["withheld_bytes"] == 0
    assert vm["totals"]["kernel_thread_ns"] == 128 * (46_200 + 19_200)


def test_pages_of_the_kernel_come_with_what_is_plugged() -> None:
    """In every block: nothing of what was plugged can be unplugged again."""
    vm = hotplug(IDLE, schedule={50 * MS: 512 * MIB, 100 * MS: 256 * MIB}, unmovable=1.0)
    assert vm.guests[0].channel.withheld_bytes == 0
