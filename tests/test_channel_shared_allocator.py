"""The shared allocator: what the host takes without a call of the guest, on guests of 512 MiB.

Costs of the shipped set: 0.39 us to take a free frame of 2 MiB, 0.23 us to give it back; 5.3 us to
zap one that is backed and 1 us for a shootdown that nobody has to answer.
"""

from typing import Any

import scenarios_small as small
from scenarios_small import BLOCK, MIB, MS

from simvm.hardware import load_costs

COSTS = load_costs()
IDLE = small.phase(allocate=BLOCK, accesses=1)
SEQUENTIAL = {"kind": "sequential", "stride": BLOCK}
FREED = small.phase(pattern=SEQUENTIAL, accesses=32, free="all")
"""64 MiB, touched in pages of 2 MiB, and free again after 12 ms."""
DROP = 390 + 5_300 + COSTS.shootdown_base_ns


def run(*phases: dict[str, Any], duration: int = 200 * MS, **channel: Any) -> dict[str, Any]:
    result = small.result(
        {"vm": small.guest(*phases, channel={"kind": "shared_allocator", **channel})},
        duration=duration, sample_interval=MS,
    )  # fmt: skip
    vm = small.one(result)
    frame = result.timeline.to_pandas()
    for name in ("withheld_bytes", "backed_bytes"):
        vm[name] = frame[frame["scope"] == "guest"].set_index("time_ns")[name]
    return vm


def test_frames_are_taken_without_a_call() -> None:
    """256 MiB are 128 frames, of which nothing is backed: 50 us, and the guest did nothing."""
    vm = run(IDLE, target=256 * MIB)
    assert vm["final"]["withheld_bytes"] == 256 * MIB
    assert vm["totals"]["kernel_thread_ns"] == 128 * 390
    assert vm["totals"]["hint_calls"] == vm["totals"]["hint_ns"] == 0


def test_backed_frames_are_dropped_whole() -> None:
    """What was freed last is taken first: 32 frames, each with its zap and its shootdown.

    But for one, the other half of the last one's pair of 4 MiB, which was never backed.
    """
    vm = run(FREED, schedule={50 * MS: 448 * MIB})
    assert vm["backed_bytes"][49 * MS] - vm["final"]["backed_bytes"] == 31 * BLOCK
    assert vm["totals"]["host_splits"] == 0
    assert vm["totals"]["kernel_thread_ns"] == 31 * DROP + 390


def test_frames_come_back_for_their_price() -> None:
    vm = run(IDLE, schedule={50 * MS: 448 * MIB, 100 * MS: 512 * MIB})
    assert vm["withheld_bytes"][99 * MS] == 64 * MIB
    assert vm["final"]["withheld_bytes"] == 0
    assert vm["totals"]["kernel_thread_ns"] == 32 * (390 + 230)


def test_what_the_guest_frees_goes_back_by_itself() -> None:
    """Looks at 0, 40 and 80 ms; 64 MiB are free by the second. Each look takes 3 ns a frame."""
    vm = run(FREED, automatic=True, interval=40 * MS)
    assert vm["final"]["withheld_bytes"] == 0           # the guest may use it at any time
    backed = vm["backed_bytes"]
    assert backed[39 * MS] - backed[41 * MS] == 64 * MIB
    assert vm["final"]["stranded_bytes"] < 2 * BLOCK
    looks, scan = 5, 256 * COSTS.shared_scan_ns
    assert 32 * DROP < vm["totals"]["kernel_thread_ns"] <= 32 * DROP + looks * scan + 1


def test_a_dropped_frame_is_installed_when_it_is_used_again() -> None:
    """The second round faults on all 32 frames. Without the channel on one: the guest uses the
    other half of the last frame's pair before the frame that it used first."""
    again = {**FREED, "repeat": 2, "every": 100 * MS}
    dropped = run(again, automatic=True, interval=40 * MS)["totals"]
    kept = run(again, target=512 * MIB)["totals"]
    assert dropped["slat_faults_2m"] == kept["slat_faults_2m"] + 31


def test_a_size_that_cannot_be_reached_is_asked_for_again() -> None:
    """The guest holds 64 MiB until 100 ms or so; the next look takes what it freed."""
    hold = small.phase(pattern=SEQUENTIAL, accesses=32)
    wait = small.phase(name="wait", allocate=None, accesses=100, think_time=MS, free="all")
    vm = run(hold, wait, schedule={50 * MS: 16 * MIB}, duration=1500 * MS)
    withheld = vm["withheld_bytes"]
    assert withheld[90 * MS] < 450 * MIB
    assert withheld[990 * MS] == withheld[90 * MS]
    assert vm["final"]["withheld_bytes"] == 496 * MIB


def test_a_frame_in_use_is_never_taken() -> None:
    """4 KiB pages of the guest, freed but for some: frames that hold one stay backed."""
    work = small.phase(
        allocate=64 * MIB, pattern={"kind": "sequential", "stride": 4096}, accesses=16_384,
        free=31 * MIB,
    )  # fmt: skip
    result = small.result(
        {"vm": small.guest(work, page_size=4096,
                           channel={"kind": "shared_allocator", "automatic": True})},
        duration=3000 * MS,
    )  # fmt: skip
    (region,) = small.one(result)["regions"]
    assert region["touched_bytes"] == region["backed_2m_bytes"] == 33 * MIB
    assert small.one(result)["final"]["stranded_bytes"] < 2 * BLOCK
