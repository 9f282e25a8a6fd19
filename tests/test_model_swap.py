"""The swap device: slots, the queue of requests, and pages under writeback."""

from __future__ import annotations

import pytest
from scenarios_small import BLOCK, MIB, PAGE, US

from simvm.hardware import load_costs
from simvm.model.clock import Clock
from simvm.model.swap import Run, make_device
from simvm.scenario.models import Swap


class Device:
    """A device of 8 MiB: 100 us, 2 requests at once, 4 KiB in 4 us; and the frames it freed."""

    def __init__(self, **settings: object) -> None:
        self.env = Clock()
        base: dict[str, object] = {
            "device": "nvme", "size": 8 * MIB, "latency": 100 * US, "parallelism": 2,
            "bandwidth": 1_024_000_000,
        }  # fmt: skip
        self.swap = make_device(
            self.env, Swap.model_validate({**base, **settings}), load_costs()
        )
        self.freed: list[tuple[int, list[int]]] = []

    def write(self, slots: list[int], frames: list[int]) -> None:
        assert self.swap.write(Run(slots, frames), self._free) == 0

    def _free(self, frames: list[int]) -> None:
        self.freed.append((self.env.now, frames))


def test_slots_of_a_huge_folio_lie_in_a_row() -> None:
    swap = Device().swap
    first = swap.slot_for(1)
    small = swap.slot_for(0)
    assert first is not None
    assert small is not None
    assert first % 512 == 0
    assert small // 512 != first // 512
    assert swap.used_bytes == BLOCK + PAGE
    assert [swap.slot_for(1) is None for _ in range(3)] == [False, False, True]
    assert swap.used_bytes == 3 * BLOCK + PAGE


def test_without_a_device_there_are_no_slots() -> None:
    swap = Device(device="none").swap
    assert swap.slot_for(0) is None
    assert swap.size == swap.used_bytes == 0


def test_requests_queue_for_channels() -> None:
    """Two at a time, each 100 us."""
    swap = Device().swap
    assert [swap.read(0).sleep_ns // US for _ in range(5)] == [100, 100, 200, 200, 300]


def test_large_writes_queue_for_the_link() -> None:
    """2 MiB take 2048 us of the link, and hold reads behind them up."""
    device = Device()
    slots, frames = list(range(512)), [PAGE * page for page in range(512)]
    assert device.swap.slot_for(1) == 0
    device.write(slots, frames)
    assert device.swap.writeback_bytes == BLOCK
    assert device.swap.read(0).sleep_ns == 2_048 * US + 4 * US
    device.env.run()
    assert device.freed == [(2_048 * US, frames)]
    assert device.swap.writeback_bytes == 0


def test_a_page_under_writeback_can_be_taken_back() -> None:
    """Its frame then is the taker's: the end of the write does not free it."""
    device = Device()
    slots = [device.swap.slot_for(0) for _ in range(3)]
    assert None not in slots
    device.write([slot for slot in slots if slot is not None], [0, PAGE, 2 * PAGE])
    assert device.swap.take_back(slots[1] or 0) == PAGE
    assert device.swap.take_back(slots[1] or 0) is None
    assert device.swap.writeback_bytes == 2 * PAGE
    device.env.run()
    assert device.freed == [(100 * US, [0, 2 * PAGE])]
    assert device.swap.take_back(slots[0] or 0) is None


def test_a_slot_freed_while_it_is_written_may_be_used_again() -> None:
    """The first write still frees its own frame, and not that of the second."""
    device = Device(parallelism=1)
    slot = device.swap.slot_for(0)
    assert slot is not None
    device.write([slot], [7 * PAGE])
    device.swap.free_slots([slot])
    again = device.swap.slot_for(0)
    assert again == slot
    device.write([slot], [9 * PAGE])
    assert device.swap.writeback_bytes == 2 * PAGE
    device.env.run(150 * US)
    assert device.freed == [(100 * US, [7 * PAGE])]
    assert device.swap.take_back(slot) == 9 * PAGE
    device.env.run()
    assert device.freed == [(100 * US, [7 * PAGE]), (200 * US, [])]
    assert device.swap.writeback_bytes == 0


def test_whoever_waits_for_writes_is_woken_by_each() -> None:
    device = Device(parallelism=1)
    woken: list[int] = []

    def wait() -> object:
        for _ in range(2):
            yield device.swap.writes_done
            woken.append(device.env.now)

    device.env.process(wait())  # type: ignore[arg-type]
    for number in range(2):
        slot = device.swap.slot_for(0)
        assert slot is not None
        device.write([slot], [number * PAGE])
    device.env.run()
    assert woken == [100 * US, 200 * US]


def test_refault_distance_counts_the_pages_evicted_since() -> None:
    device = Device()
    first, second = device.swap.slot_for(0), device.swap.slot_for(0)
    assert first is not None
    assert second is not None
    device.write([first], [0])
    assert device.swap.refault_distance(first) == 1
    device.write([second], [PAGE])
    assert device.swap.refault_distance(first) == 2
    assert device.swap.refault_distance(second) == 1


def test_a_slot_is_given_back_once() -> None:
    device = Device()
    slot = device.swap.slot_for(0)
    assert slot is not None
    device.write([slot], [0])
    device.swap.free_slots([slot])
    assert device.swap.used_bytes == 0
    with pytest.raises(KeyError):
        device.swap.free_slots([slot])
