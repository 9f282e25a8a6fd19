"""The rows of guests that write in turns: what is read from a run, and that they can fail."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from simvm import validation
from simvm.results import RunResult
from simvm.validation import scenarios, staggered

MIB, S = 1 << 20, 1_000_000_000
NAME = "write_free_staggered"


class Timeline:
    """Samples of one guest, half a second apart, in MiB."""

    def __init__(self, backed: list[int]) -> None:
        self._values = {
            "time_ns": np.arange(len(backed)) * (S // 2),
            "backed_bytes": np.array(backed) * MIB,
        }

    def guest(self, class_: str, index: int) -> Timeline:
        return self

    def host(self) -> Timeline:
        return self

    def values(self, name: str) -> Any:
        return self._values[name]


def result_of(*backed: int) -> RunResult:
    class Result:
        timeline = Timeline(list(backed))

    return cast("RunResult", Result())


def test_falls_are_passes() -> None:
    """A pass that a sample cuts in two is one; what guests write between is no fall."""
    made = result_of(100, 4000, 3900, 2976, 2976, 1952, 1952, 5000, 4999, 4999)
    falls = staggered.falls(made)
    assert [(time // (S // 2), size // MIB) for time, size in falls] == [
        (3, 1024), (5, 1024), (8, 1),
    ]  # fmt: skip
    assert staggered.drain_s(made) == 2.5
    assert staggered.period_s(made) == 1.25
    assert staggered.peak_gib(made) == 5000 / 1024
    assert staggered.mean_gib(made) == pytest.approx((100 + 4000 + 3900 + 2 * 2976 + 2 * 1952
                                                      + 5000 + 4999) / 9 / 1024)  # fmt: skip


def test_leftovers_are_no_steps() -> None:
    """To the nearest message of 128 MiB, and of two passes in a row."""
    sizes = (1020, 1024, 914, 640, 638, 640, 128)
    backed = [sum(sizes)]
    for size in sizes:
        backed += [backed[-1], backed[-1] - size]
    assert staggered.steps_mib(result_of(*backed)) == [1024, 640]


def test_the_steps_follow_from_the_lengths_of_the_lists() -> None:
    """1792 and 624 free blocks of 4 MiB: messages of a pass are ceil(n / 512) + 1 = 5 and 3.

    At a thirty-second of a list, ceil(n / 1024) + 1 = 3 and 2.
    """
    sets = ["guest.vm.count=1", "guest.vm.stagger=0s", "scenario.duration=30s"]
    for key in ("kind=free_page_reporting", "ticks_per_second=1000"):
        sets.append(f"guest.vm.channel.{key}")
    assert staggered.steps_mib(scenarios.run(NAME, sets=sets)) == [8 * 128, 5 * 128]
    slower = scenarios.run(NAME, sets=[*sets, "guest.vm.channel.budget=32"])
    assert staggered.steps_mib(slower) == [5 * 128, 3 * 128]
    sooner = scenarios.run(NAME, sets=[*sets, "guest.vm.channel.delay=1s"])
    assert staggered.period_s(sooner) == pytest.approx(1.024, abs=0.05)


def test_another_figure_is_a_miss() -> None:
    table = dict(validation.published()[NAME])
    mean, step = table["rows"][3], table["rows"][5]
    table["rows"] = [{**mean, "value": 11.76 * 1.15}, {**step, "value": 768}]
    rows = validation.run([NAME], against={NAME: table})
    assert [row["within"] for row in rows] == [False, False]


def test_rounds_last_as_long_as_they_did() -> None:
    for variant in (None, "free_page_reporting"):
        for guest in scenarios.run(NAME, variant).summary["guests"]:
            for phase in guest["phases"]:
                if phase["end_ns"] < 135 * S:
                    assert 5 * S < phase["end_ns"] - phase["start_ns"] < 5.5 * S
