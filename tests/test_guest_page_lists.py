"""Lists of free pages as Linux keeps them, one for each CPU, and what holds blocks back by them."""

from __future__ import annotations

import random
from typing import Any

import pytest
import scenarios_small as small
from scenarios_small import BLOCK, GIB, MIB, MS, PAGE, US, S

from simvm import _core
from simvm.hardware import load_costs
from simvm.model.guest_memory.short_processes import runs_of
from simvm.model.guest_memory.zones import Zone
from simvm.model.watermarks import Watermarks
from simvm.results import RunResult
from simvm.scenario.check import findings

ABSENT = (1, 4, 0)  # a zone that there is not


def listed(size: int, batch: int = 63, high: int = 252, cpus: int = 4) -> _core.BlockAllocator:
    """Memory of one zone with lists."""
    memory = _core.BlockAllocator(size)
    memory.use_lists(((batch, high, 0), ABSENT), cpus)
    return memory


# --- the lists --------------------------------------------------------------------------


def test_a_list_is_filled_with_a_batch_in_a_row() -> None:
    """63 pages go to the first CPU, of which one is taken; the second's begin after them."""
    memory = listed(8 * MIB)
    first = memory.allocate_4k()
    assert memory.free_bytes == 8 * MIB - 63 * PAGE
    assert memory.cpu_list_bytes == 62 * PAGE
    memory.run_on(1)
    assert memory.allocate_4k() == first + 63 * PAGE
    memory.run_on(0)
    assert memory.allocate_4k() == first + PAGE
    assert memory.free_bytes == 8 * MIB - 2 * 63 * PAGE == memory.recount()


def test_a_full_list_returns_twice_as_many_each_time() -> None:
    """A list of 252 returns 63, then 126, then 189 at a time: one batch of 63 stays.

    So 1000 freed pages come back after 252, 63 more, 126 more, and from then on each 189:
    63, 189, 378, 567 and 756 in all; 244 are left on the list.
    """
    memory = listed(8 * MIB)
    pages = [memory.allocate_4k() for _ in range(1000)]
    memory.run_on(1)
    before, seen = memory.free_bytes, []
    for n, page in enumerate(pages, 1):
        memory.free_4k(page)
        back = (memory.free_bytes - before) // PAGE
        if not seen or back != seen[-1][1]:
            seen.append((n, back))
    assert seen == [(1, 0), (252, 63), (315, 189), (441, 378), (630, 567), (819, 756)]
    assert memory.cpu_list_bytes == (1008 - 1000 + 244) * PAGE


def test_what_was_freed_last_is_taken_first_and_never_twice() -> None:
    memory = listed(8 * MIB)
    page, other = memory.allocate_4k(), memory.allocate_4k()
    memory.free_4k(page)
    memory.free_4k(other)
    with pytest.raises(ValueError, match="not in use"):
        memory.free_4k(other)
    assert [memory.allocate_4k(), memory.allocate_4k()] == [other, page]


def test_a_cpu_that_finds_nothing_gets_what_others_have_on_their_lists() -> None:
    memory = listed(4 * MIB)
    memory.run_on(1)
    memory.allocate_4k()  # 62 more are on its list
    memory.run_on(0)
    assert len({memory.allocate_4k() for _ in range(1023)}) == 1023
    with pytest.raises(MemoryError):
        memory.allocate_4k()


def test_the_upper_zone_is_used_down_to_its_low_mark() -> None:
    """Of 2048 pages each: 1948 of the upper, all of the lower, and then the upper's last 100."""
    memory = _core.BlockAllocator(16 * MIB, lower=8 * MIB)
    memory.use_lists(((1, 4, 100), (1, 4, 0)), 1)
    upper = [memory.allocate_4k() >= 8 * MIB for _ in range(4096)]
    assert upper == [True] * 1948 + [False] * 2048 + [True] * 100


@pytest.mark.parametrize("lists", [False, True])
def test_single_pages_taken_while_others_are_freed_keep_many_blocks(lists: bool) -> None:
    """Four blocks of two programs, who have every other page. The first frees its own.

    What is free then are single pages, the last of which lie in four blocks. A third program
    takes four pages: one in each, and so no block is whole once the second has freed its pages
    too. It ends, and its four pages are on its CPU's list: still none is. Without lists it takes
    four pages of one block, and three are whole, and four as soon as it ends.
    """
    memory = listed(8 * MIB, 1, 8) if lists else _core.BlockAllocator(8 * MIB)
    pages = [memory.allocate_4k() for _ in range(2048)]
    assert sorted(pages) == list(range(0, 8 * MIB, PAGE))
    memory.run_on(2)
    for at in range(0, BLOCK, 2 * PAGE):
        for block in range(4):
            memory.free_4k(block * BLOCK + at)
    memory.drain()
    memory.run_on(3)
    taken = [memory.allocate_4k() for _ in range(4)]
    assert len({page // BLOCK for page in taken}) == (4 if lists else 1)
    memory.run_on(2)
    for page in range(PAGE, 8 * MIB, 2 * PAGE):
        memory.free_4k(page)
    memory.drain()
    assert memory.free_blocks == (0 if lists else 3)
    memory.run_on(3)
    for page in taken:
        memory.free_4k(page)
    assert memory.free_blocks == (0 if lists else 4)
    assert memory.drain() == lists
    assert memory.free_blocks == 4
    assert memory.free_bytes == 8 * MIB


def test_lists_and_blocks_agree_whatever_is_done() -> None:
    """No page has two owners, the count is right, and in the end all blocks are whole."""
    draw = random.Random(5)
    memory = _core.BlockAllocator(32 * MIB, lower=8 * MIB)
    memory.use_lists(((63, 252, 300), (7, 28, 40)), 3)
    single: list[int] = []
    runs: list[tuple[int, int]] = []
    blocks: list[int] = []
    for _ in range(20_000):
        memory.run_on(draw.randrange(3))
        what = draw.random()
        try:
            if what < 0.40:
                single += [memory.allocate_4k(draw.random() < 0.8) for _ in range(20)]
            elif what < 0.75 and single:
                for _ in range(min(20, len(single))):
                    memory.free_4k(single.pop(draw.randrange(len(single))))
            elif what < 0.80:
                pages = 1 << draw.randrange(5)
                runs.append((memory.allocate_run(pages, draw.random() < 0.5), pages))
            elif what < 0.86 and runs:
                memory.free_run(*runs.pop(draw.randrange(len(runs))))
            elif what < 0.89:
                blocks.append(memory.allocate_2m())
            elif what < 0.93 and blocks:
                block = blocks.pop()
                memory.break_2m(block)
                single += range(block, block + BLOCK, PAGE)
            elif what < 0.97 and blocks:
                memory.free_2m(blocks.pop())
            elif what < 0.975:
                memory.drain()
        except MemoryError:
            while single:
                memory.free_4k(single.pop())
    held = single + [start + i * PAGE for start, n in runs for i in range(n)]
    assert len(held) == len(set(held))
    used = len(held) * PAGE + len(blocks) * BLOCK
    assert memory.free_bytes == memory.recount() == 32 * MIB - used - memory.cpu_list_bytes
    for page in held:
        memory.free_4k(page)
    for block in blocks:
        memory.free_2m(block)
    memory.drain()
    assert memory.free_blocks == 16


def test_the_sizes_of_lists_are_those_of_linux() -> None:
    """A zone of 256 MiB or more has batches of a quarter of 256, rounded: 63. Of 128 MiB: 7.

    At most its low mark over the CPUs: 8000 pages over 8; but not less than four batches.
    """
    marks = Watermarks(6400 * PAGE, 8000 * PAGE, 9600 * PAGE)
    assert [Zone(False, size, marks).batch for size in (7 * GIB, GIB, 512 * MIB, 128 * MIB)] == [
        63, 63, 31, 7,
    ]  # fmt: skip
    assert Zone(False, 7 * GIB, marks).high(8) == 1000
    assert Zone(False, 7 * GIB, marks).high(80) == 4 * 63


def test_lists_are_set_up_once_and_first() -> None:
    memory = listed(8 * MIB)
    with pytest.raises(ValueError, match="set up once"):
        memory.use_lists(((1, 4, 0), ABSENT), 1)
    with pytest.raises(ValueError, match="no CPU 4"):
        memory.run_on(4)
    broken = _core.BlockAllocator(8 * MIB)
    broken.allocate_4k()
    with pytest.raises(ValueError, match="before a page"):
        broken.use_lists(((1, 4, 0), ABSENT), 1)
    with pytest.raises(ValueError, match="two batches"):
        _core.BlockAllocator(8 * MIB).use_lists(((4, 7, 0), ABSENT), 1)


# --- guests -----------------------------------------------------------------------------


def shared(**values: Any) -> RunResult:
    """Four threads write 128 MiB in pages of 4 KiB, about 60 in a turn, and free it."""
    round_ = small.phase(
        allocate=128 * MIB, threads=4, pattern={"kind": "sequential", "stride": PAGE},
        accesses=128 * MIB // PAGE, cycles_per_access=2000, write_fraction=1.0, free="all",
    )  # fmt: skip
    return small.run(small.scenario(
        {"vm": small.guest(
            round_, vcpus=4, page_size=PAGE, channel={"kind": "free_page_reporting"}, **values
        )},
        quantum=120 * US, duration=12 * S, sample_interval=100 * MS,
    ))  # fmt: skip


def left(made: RunResult) -> int:
    """Blocks that are backed in the end."""
    return int(made.timeline.guest("vm", 0).values("backed_bytes")[-1]) // BLOCK


def freeing(made: RunResult) -> int:
    """When half of the round's pages are free, each taking `guest_free`."""
    end = int(made.summary["guests"][0]["phases"][0]["end_ns"])
    return end - 128 * MIB // PAGE * load_costs().guest_free_ns // 2


def test_a_process_that_runs_while_much_is_freed_keeps_blocks_from_the_host() -> None:
    """It takes 100 pages and gives them back a moment later, to its vCPU's list.

    Each page keeps at most one block, as do those with which its vCPU's list was filled, to a
    batch of 31 more. After the free it would keep 100 pages in a row: of one block or two.
    """
    without = shared(per_cpu_lists=True)
    half = freeing(without)

    def kept(at: int) -> int:
        process = {"schedule": {f"{at}ns": 100 * PAGE}, "stay": "1ms"}
        return left(shared(per_cpu_lists=True, short_processes=process)) - left(without)

    assert 20 <= kept(half) <= 131
    assert 0 <= kept(half + 100 * MS) <= 2


def test_freeing_takes_time_where_there_are_lists() -> None:
    """32768 pages at 500 ns each, the geometric mean of 250 and 1000."""
    assert load_costs().guest_free_ns == 500
    parts = [
        shared(per_cpu_lists=lists).summary["guests"][0]["phases"][0]["parts"]["guest_fault_ns"]
        for lists in (False, True)
    ]
    assert parts[1] - parts[0] == 32768 * 500


def test_the_kernel_may_lie_at_the_top() -> None:
    """Struct pages of 512 MiB are 8 MiB, and 3 MiB of boot: six blocks."""
    made = small.simulate(small.scenario(
        {"vm": small.guest(boot=3 * MIB, kernel_place="high")}, duration="work",
    ))  # fmt: skip
    guest = made.guests[0]
    assert guest.kernel_start == 500 * MIB
    assert guest.memory.free_blocks_from(500 * MIB, 1) == []


def test_short_processes_pass_memory_on_and_are_charged() -> None:
    """Three of 10 pages each: 30 faults of `guest_fault` and what backs and zeroes their blocks."""
    process = {"schedule": {"1ms": 30 * PAGE}, "processes": 3, "stay": "1ms"}
    made = small.run(small.scenario(
        {"vm": small.guest(short_processes=process)}, duration=100 * MS, sample_interval=10 * MS,
    ))  # fmt: skip
    plain = small.run(small.scenario(duration=100 * MS, sample_interval=10 * MS))
    rows = [run.timeline.guest("vm", 0) for run in (made, plain)]
    took = [int(row.values("kernel_thread_ns")[-1]) for row in rows]
    assert took[0] - took[1] >= 30 * load_costs().guest_fault_ns
    free = [int(row.values("guest_free_bytes")[-1]) for row in rows]
    assert free[0] == free[1]


def test_runs_of_pages() -> None:
    assert list(runs_of([])) == []
    assert list(runs_of([5 * PAGE, PAGE, 2 * PAGE])) == [(PAGE, 2 * PAGE), (5 * PAGE, PAGE)]


def test_what_cannot_be_is_refused() -> None:
    process = {"schedule": {"1ms": 3 * PAGE}, "processes": 2, "stay": "1ms"}
    wrong = small.scenario({
        "vm": small.guest(
            per_cpu_lists=True, short_processes=process, memory_max=GIB,
            channel={"kind": "virtio_mem", "target": 256 * MIB},
        ),
        "old": small.guest(per_cpu_lists=True, khugepaged={}),
        "box": small.container(per_cpu_lists=True, kernel_place="high"),
    })  # fmt: skip
    found = {each.key: each.fix for each in findings(wrong)}
    assert found["guest.vm.per_cpu_lists"] == "remove it, or choose another channel"
    assert found["guest.old.per_cpu_lists"] == "remove it, or write khugepaged.defrag = false"
    assert found["guest.vm.short_processes.schedule.1ms"] == 'write "16KiB"'
    assert found["guest.box.per_cpu_lists"] == found["guest.box.kernel_place"] == "remove it"
